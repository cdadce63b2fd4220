"""tools/step_profile.py on a small checkpoint."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = [sys.executable, str(Path(__file__).parents[2] / "tools" / "step_profile.py")]


def table_of(output: str) -> dict[str, list[str]]:
    """Cells by row label."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in rows}


@pytest.mark.slow
def test_profile_tells_where_a_step_goes(make_checkpoint: Callable[..., Path]) -> None:
    arguments = [
        str(make_checkpoint("qwen3")),
        "--batch",
        "1",
        "3",
        "--context",
        "20",
        "--steps",
        "2",
        "--threads",
        "1",
    ]
    ran = subprocess.run([*TOOL, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    table = table_of(ran.stdout)
    shares = [float(cells[0].split(", ")[1].rstrip("%")) for cells in table.values() if "%" in cells[0]]
    assert len(shares) == 13
    assert abs(sum(shares) - 100) < 1
    assert all(float(cell.split(",")[0]) > 0 for part in ("qkv", "down", "lm_head", "sampling") for cell in table[part])
    ratios = [float(cell.split()[0]) for cell in table["**step / floor**"]]
    assert len(ratios) == 2
    assert min(ratios) > 0
