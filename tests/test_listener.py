"""Sockets that a server is started with, passed as systemd does: from descriptor 3 on, in a process of its own."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

START = 'n=3; for fd in $FDS; do eval "exec $n<&$fd"; n=$((n + 1)); done; export LISTEN_PID=${PID:-$$}; exec "$@"'
"""systemd's part: the descriptors in order, and the variables."""

SERVE_ONE = """
import json, os
from albireo.errors import StartupError
from albireo.listener import ListenAddress, listening
try:
    with listening(ListenAddress("127.0.0.1", 0)) as listener:
        said = {"url": listener.url, "host": listener.host, "port": listener.port, "is_passed": listener.is_passed}
        said |= {"line": listener.description, "left": [name for name in os.environ if name.startswith("LISTEN_")]}
        said["inherited"] = os.get_inheritable(listener.socket.fileno())
        if listener.is_passed:
            connection = listener.socket.accept()[0]
            connection.sendall(b"served")
            connection.close()
        print(json.dumps(said))
except StartupError as error:
    print(json.dumps({"error": str(error), "code": error.exit_code}))
"""


def start(*passed: socket.socket, **environment: str) -> "subprocess.Popen[str]":
    names = ":".join(f"unit-{index}.socket" for index in range(len(passed)))
    fds = [each.fileno() for each in passed]
    # the numbers that the shell copies from must not be those that it copies to
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in fds]
    own = {"FDS": " ".join(map(str, copies)), "LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": names}
    process = subprocess.Popen(
        ["bash", "-c", START, "systemd", sys.executable, "-c", SERVE_ONE],
        env={**os.environ, **own, **environment}, pass_fds=copies, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for copy in copies:
        os.close(copy)
    return process


def said_by(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output = process.communicate(timeout=60)[0]
    said: dict[str, Any] = json.loads(output)
    return said


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_passed_port_is_served_in_place_of_the_flags(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as opened:
        port = opened.getsockname()[1]
        process = start(opened)
        with socket.create_connection((host, port), timeout=60) as client:
            assert client.recv(100) == b"served"
        said = said_by(process)
    where = f"[{host}]" if ":" in host else host
    assert said["url"] == f"http://{where}:{port}" and (said["host"], said["port"]) == (host, port)
    assert said["line"].startswith(said["url"] + " (socket passed by systemd")
    assert said["left"] == [] and said["inherited"] is False


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_passed_unix_socket_is_served_and_its_file_stays(tmp_path: Path, is_abstract: bool) -> None:
    path = f"\0albireo-{os.getpid()}" if is_abstract else str(tmp_path / "http.sock")
    with socket.socket(socket.AF_UNIX) as opened, socket.socket(socket.AF_UNIX) as client:
        opened.bind(path)
        opened.listen()
        process = start(opened)
        client.settimeout(60)
        client.connect(path)
        assert client.recv(100) == b"served"
        said = said_by(process)
    assert said["url"] == "http+unix:" + path.replace("\0", "@") and said["port"] == 0
    assert is_abstract or Path(path).exists(), "it is systemd's"


def test_sockets_for_another_process_are_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        said = said_by(start(opened, PID="1"))
    assert not said["is_passed"] and said["left"] == [] and said["line"] == said["url"]


def test_one_socket_is_served_and_not_several() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        said = said_by(start(one, other))
    assert said["code"] == 3 and "2 sockets were passed (unit-0.socket, unit-1.socket)" in said["error"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_does_not_listen_is_refused(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as opened:
        opened.bind(("127.0.0.1", 0))
        said = said_by(start(opened))
    assert said["code"] == 3 and "(unit-0.socket) is not a stream socket that listens" in said["error"]


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        said = said_by(start(file))  # type: ignore[arg-type]
    assert said["code"] == 3 and "descriptor 3 (unit-0.socket) is not a socket" in said["error"]
