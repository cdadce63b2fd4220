"""Triton's compiler for the GPU takes the kernels that its interpreter runs here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parent.glob("compile_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.slow
def test_kernels_compile_for_an_h100(script: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=220, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bytes" in done.stdout


def test_there_is_a_script_for_layers_attention_sampling_and_steps() -> None:
    assert {script.stem for script in SCRIPTS} >= {"compile_attention", "compile_layers", "compile_step"}
