"""Checks of clients that are command lines."""

import os
import subprocess
import sys
from pathlib import Path


def run(*argv: str, timeout_s: float = 240, offline: bool = True) -> str:
    """The output of a command of this venv; `offline` keeps it from asking model hubs. Raises RuntimeError with its
    last line when it fails."""
    program = Path(sys.executable).parent / argv[0]
    env = os.environ | {"OPENAI_API_KEY": "none", "COLUMNS": "200"}
    if offline:
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [str(program), *argv[1:]], capture_output=True, text=True, timeout=timeout_s, env=env, check=False
    )
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"exit code {done.returncode}: {lines[-1] if lines else 'no output'}")
    return done.stdout + done.stderr
