"""HTTPS, Unix sockets, and several frontends behind them."""

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from server import Server
from test_lifecycle import start

BODY = {"model": "albireo-demo", "prompt": "Once", "max_tokens": 20, "stream": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_streams_over_tls_from_every_frontend(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    flags = (
        "--ssl-certfile",
        cert,
        "--ssl-keyfile",
        key,
        "--frontends",
        "2",
        "--api-key",
        "k",
        "--kv-cache-bytes",
        "64M",
    )
    with Server(*flags) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=cert)
        for _ in range(4):
            with httpx.Client(verify=context, headers={"Authorization": "Bearer k"}) as client:
                with client.stream("POST", server.url + "/v1/completions", json=BODY, timeout=30) as response:
                    lines = [line for line in response.iter_lines() if line]
                assert len(lines) > 5 and lines[-1] == "data: [DONE]"
                assert client.get(server.url + "/").status_code == 200
        assert httpx.get(server.url + "/version", verify=context).status_code == 401


def test_a_unix_socket_is_served_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with Server("--uds", str(path), "--kv-cache-bytes", "64M") as server:
        assert server.url == f"http+unix:{path}"
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://albireo") as client:
            assert client.post("/v1/completions", json=BODY, timeout=30).text.rstrip().endswith("[DONE]")
        code, stderr = start("--uds", str(path))
        assert code == 3 and "in use" in stderr and "--uds" in stderr
    assert not path.exists()


def test_what_is_no_certificate_is_said_in_one_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    for flags, words in (
        (("--ssl-certfile", str(wrong)), "wrong.pem"),
        (("--ssl-certfile", "no/such"), "No such file"),
    ):
        code, stderr = start(*flags)
        assert code == 3 and words in stderr and len(stderr.splitlines()) == 1
    assert start("--ssl-keyfile", str(wrong))[0] == 2
