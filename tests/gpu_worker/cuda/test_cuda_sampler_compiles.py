"""Triton's compiler for the GPU takes the sampling kernels that its interpreter runs here."""

import os
import subprocess
import sys
from pathlib import Path


def test_sampling_kernels_compile_for_an_h100() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    script = Path(__file__).with_name("compile_sampling.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "write_scores" in done.stdout
