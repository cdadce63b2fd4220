"""`serve --ray` on a Ray cluster of two nodes on this machine. Needs Ray, which `make test-slow` does not install."""

import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports warn
    pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'albireo[ray]'")

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
CHECK = Path(__file__).parent.parent.parent / "tools" / "ray_check.py"


def two_free_ports() -> int:
    """The first of two that follow each other."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except (OSError, OverflowError):
                continue


@pytest.mark.parametrize("part", ["service", "scaling", "config"])
def test_engines_on_ray(part: str) -> None:
    command = [sys.executable, str(CHECK), "--only", part, "--port", str(two_free_ports())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
