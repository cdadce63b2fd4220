"""The bounds on a client's time hold behind TLS too, where bytes wait in more places."""

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import endless_reply, wait_for
from frontend_server import FrontendServer
from test_streams import long_token_path, num_connections, request_bytes

from albireo import limits


@pytest.fixture
def server(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FrontendServer]:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(limits, "MAX_STREAM_BACKLOG_BYTES", 2**30)
    monkeypatch.setattr(limits, "STALLED_TIMEOUT_S", 1.5)
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1",
         "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    path = long_token_path(tokenizer_path, run_dir)
    with FrontendServer(run_dir, path, endless_reply([402]), ssl_certfile=cert, ssl_keyfile=key) as server:
        yield server


def connect(server: FrontendServer) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(30)
    plain.connect(("127.0.0.1", server.port))
    return context.wrap_socket(plain)


def test_a_head_that_comes_too_slowly_is_a_408(server: FrontendServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_takes_nothing_is_cut_off(server: FrontendServer, caplog: pytest.LogCaptureFixture) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes(stream=True, prompt=["x"] * 2, max_tokens=240))
        wait_for(lambda: len(server.coordinator.submits) == 2)
        wait_for(lambda: not server.coordinator.live, timeout_s=30)
        wait_for(lambda: num_connections(server) == 0, timeout_s=30)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
