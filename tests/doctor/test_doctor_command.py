"""`albireo-run doctor` on this machine."""

import json
import socket
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def doctor(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "albireo.cli", "doctor", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    return done.returncode, done.stdout


def test_the_demo_model_fits_here_and_the_json_says_how() -> None:
    code, output = doctor("--json", "--device", "cpu")
    found: dict[str, Any] = json.loads(output)
    assert (code, found["can_start"]) == (0, True)
    assert found["machine"]["cores"] >= 1
    assert found["probe"]["packages"]["torch"]
    assert found["probe"]["fast_attention"] is True
    assert found["fit"]["kv_cache_tokens"] >= found["fit"]["max_model_len"]
    assert not [check for check in found["checks"] if check["grade"] == "problem"]


def test_all_that_is_in_the_way_is_said_at_once_with_exit_code_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = doctor("does/not/exist", "--port", port)
    assert code == 3
    text = " ".join(output.split())
    assert "✗ model: does/not/exist does not exist" in text
    assert f"✗ port: cannot listen on 127.0.0.1 port {port}: Address already in use" in text
    assert text.endswith("✗ a server cannot start like this")


@pytest.mark.slow
def test_a_simulated_device_is_looked_at_as_others() -> None:
    code, output = doctor("--device", "sim:h100", "-tp", "4")
    text = " ".join(output.split())
    assert code == 0
    assert "on sim:h100" in text
    assert "decode steps" not in text
    code, output = doctor("--device", "sim:h101")
    assert code == 3
    assert "no preset 'h101'" in " ".join(output.split())


def test_a_model_that_is_too_long_for_the_cache_is_a_problem() -> None:
    code, output = doctor("--max-model-len", "100000000")
    assert code == 3
    assert "exceeds the model's" in " ".join(output.split())


@pytest.mark.parametrize("flags", [("-tp", "0"), ("--port", "70000"), ("--port", "-1"), ("--max-model-len", "1")])
def test_flags_that_make_no_sense_are_exit_code_2(flags: tuple[str, str]) -> None:
    assert doctor(*flags)[0] == 2
