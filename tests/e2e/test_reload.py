"""SIGHUP on a real server: keys and log level change, nothing else does."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest
from server import Server, eventually

pytestmark = pytest.mark.e2e
NULL = ("--device", "null", "--null-step-ms", "10")


class Service:
    """A server and its --env-file."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self._path = path

    def status(self, key: str) -> int:
        try:
            with self.post(key, max_tokens=1) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def post(self, key: str, max_tokens: int, stream: bool = False) -> HTTPResponse:
        body = {"prompt": "x", "max_tokens": max_tokens, "stream": stream}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        url = self.server.url + "/v1/completions"
        response: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers))
        return response

    def num_access_lines(self) -> int:
        return sum("/v1/completions" in line for line in self.server.lines)

    def is_logged(self, key: str) -> bool:
        """Whether a request is, now."""
        before = self.num_access_lines()
        assert self.status(key) == 200
        time.sleep(0.1)
        return self.num_access_lines() > before

    def reload(self, text: str, answer: str = "") -> None:
        """Writes the file and waits until the server has said `answer`, if it will say anything."""
        self.server.lines.clear()
        self._path.write_text(text)
        self.server.process.send_signal(signal.SIGHUP)
        if answer:
            assert eventually(lambda: any(answer in line for line in self.server.lines)), self.server.lines


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("env") / "albireo.env"
    path.write_text("ALBIREO_API_KEY=old\n")
    with Server(*NULL, "--frontends", "2", "--env-file", str(path)) as server:
        yield Service(server, path)
    assert server.wait() == 0


def test_keys_are_replaced_in_every_frontend_and_running_streams_go_on(service: Service) -> None:
    service.reload("ALBIREO_API_KEY=old", "API keys: 1")
    with service.post("old", max_tokens=200, stream=True) as stream:
        stream.readline()
        service.reload("ALBIREO_API_KEY=new,newer", "API keys: 2, log level info")
        assert eventually(lambda: {service.status("old") for _ in range(8)} == {401})
        assert {service.status(key) for key in ("new", "newer") for _ in range(4)} == {200}
        assert stream.read().decode().rstrip().endswith("data: [DONE]")


def test_who_takes_the_place_of_a_dead_frontend_knows_the_new_keys(service: Service) -> None:
    service.reload("ALBIREO_API_KEY=newest", "API keys: 1")
    victims = [pid for name, pid in service.server.children().items() if "frontend" in name]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: sum("is ready after" in line for line in service.server.lines) == 2, timeout_s=60)
    assert service.status("newest") == 200
    assert service.status("old") == 401


def test_a_file_that_would_open_the_server_is_refused(service: Service) -> None:
    service.reload("ALBIREO_API_KEY=kept", "API keys: 1")
    service.reload("", "nothing is changed: ")
    assert service.status("kept") == 200
    assert service.status("") == 401


def test_the_log_level_changes_in_every_process(service: Service) -> None:
    keys = "ALBIREO_API_KEY=kept\n"
    service.reload(keys + "ALBIREO_LOG_LEVEL=info", "log level info")
    # the supervisor says it before a frontend has heard it
    assert eventually(lambda: service.status("kept") == 200 and service.is_logged("kept"))
    service.reload(keys + "ALBIREO_LOG_LEVEL=error")
    assert eventually(lambda: not service.is_logged("kept"))
    service.reload(keys + "ALBIREO_LOG_LEVEL=info", "log level info")
    assert eventually(lambda: service.is_logged("kept"))


def test_without_a_file_sighup_changes_nothing_and_ends_nothing() -> None:
    with Server(*NULL) as server:
        for pid in (server.process.pid, *server.children().values()):
            os.kill(pid, signal.SIGHUP)
        assert eventually(lambda: any("nothing to read again without --env-file" in line for line in server.lines))
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})["usage"]["completion_tokens"] == 2
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGHUP)
        assert server.wait() == 0


def test_sighup_while_starting_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "albireo.env"
    path.write_text("ALBIREO_API_KEY=first")
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *NULL, "--env-file", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "starting" not in (line := process.stderr.readline()) and ":" not in line:
        pass
    path.write_text("ALBIREO_API_KEY=second")
    process.send_signal(signal.SIGHUP)
    service = None
    for line in process.stderr:
        if "albireo ready: " in line:
            service = line.split("albireo ready: ")[1].split()[0]
            break
    assert service is not None
    request = urllib.request.Request(service + "/v1/models", headers={"Authorization": "Bearer first"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request)
    process.terminate()
    process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize("text", [None, "ALBIREO_API_KEY"])
def test_a_file_that_cannot_be_read_at_the_start_is_one_line_and_exit_code_3(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "albireo.env"
    if text is not None:
        path.write_text(text)
    command = [sys.executable, "-m", "albireo.cli", "serve", "--env-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "--env-file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_that_closes_ends_the_server(tmp_path: Path) -> None:
    master, slave = os.openpty()
    shell = f"exec {sys.executable} -m albireo.cli serve --port 0 {' '.join(NULL)}"
    # whoever runs the tests may ignore the signal (nohup), and children inherit that
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "env", "--default-signal=HUP", "sh", "-c", shell],
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    said = b""
    begin_s = time.monotonic()
    while b"albireo ready" not in said and time.monotonic() - begin_s < 60:
        said += os.read(master, 4096)
    os.close(master)
    assert process.wait(60) == 0
