"""`albireo-run chat` as a command, without a terminal."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from chat_fake_server import FakeChatServer, running


@pytest.fixture(scope="module")
def shared_server() -> Iterator[FakeChatServer]:
    with running() as fake:
        yield fake


@pytest.fixture
def server(shared_server: FakeChatServer) -> FakeChatServer:
    shared_server.status = 200
    shared_server.bodies.clear()
    return shared_server


def chat(*arguments: str, question: str = "hi\n", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "albireo.cli", "chat", *arguments]
    environment = {**os.environ, **env}
    return subprocess.run(
        command, input=question, capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def test_a_piped_question_gets_the_plain_answer_on_stdout(server: FakeChatServer) -> None:
    done = chat("--base-url", server.url, "--system", "be brief", "--max-tokens", "9", question="two\nlines\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
    system, user = server.bodies[0]["messages"]
    assert (system["content"], user["content"]) == ("be brief", "two\nlines")
    assert server.bodies[0]["max_tokens"] == 9


def test_the_key_comes_from_the_environment(server: FakeChatServer) -> None:
    assert chat("--base-url", server.url, ALBIREO_API_KEY="from-env").returncode == 0
    assert server.keys[-1] == "Bearer from-env"


def test_a_piped_question_that_is_refused_is_one_line_and_exit_code_1(server: FakeChatServer) -> None:
    server.status, server.error = 400, {"error": {"message": "no"}}
    done = chat("--base-url", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "albireo-run chat: no (HTTP 400)\n"


def test_a_server_that_cannot_be_reached_is_one_line_and_exit_code_3() -> None:
    done = chat("--base-url", "http://127.0.0.1:1")
    assert done.returncode == 3
    assert done.stderr.startswith("albireo-run chat: cannot reach http://127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1


def test_a_model_that_cannot_be_served_is_one_line_and_exit_code_3() -> None:
    done = chat("does/not/exist")
    assert done.returncode == 3
    assert "does/not/exist" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--base-url", "localhost:8000"], "--base-url must start with"),
        (["folder", "--base-url", "http://x"], "leave it out, or leave out --base-url"),
        (["--model", "name"], "--model names a model of the server at --base-url"),
        (["--api-key", "key"], "--api-key is for the server at --base-url"),
        (["--base-url", "http://x", "--", "--device", "cpu"], "flags behind `--`"),
    ],
)
def test_flags_that_contradict_each_other_are_exit_code_2(arguments: list[str], reason: str) -> None:
    done = chat(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
