"""A server as systemd runs it: with a socket passed, on a notify socket, and, where that can be, by a real systemd."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from server import eventually
from systemd_machine import PROGRAM, Machine, why_not

pytestmark = pytest.mark.e2e

WATCHDOG_S = 4
SMALL = ("--kv-cache-bytes", "64M")
NO_MODEL = ("--device", "null")
ENV_FILE = ("--env-file", "/etc/albireo/albireo.env")
NO_MACHINE = why_not()
WORDS = ("a b", "100%", "$HOME", 'say "so"', "it's", "back\\slash", ";", "", "é")


def test_a_passed_socket_is_served_and_systemd_is_told(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("ALBIREO_LOG_LEVEL=info")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.create_server(("127.0.0.1", 0)) as opened:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(120)
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        start = f'exec 3<&{opened.fileno()}; export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$@"'
        flags = (*SMALL, "--env-file", str(tmp_path / "env"))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000", "LISTEN_FDS": "1"}
        with subprocess.Popen(
            ["bash", "-c", start, "systemd", sys.executable, "-m", "albireo.cli", "serve", *flags],
            env={**os.environ, **environment}, pass_fds=[opened.fileno()], stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            messages = [notify.recv(4096).decode()]
            while not messages[-1].startswith("READY=1\n"):
                messages.append(notify.recv(4096).decode())
            with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as response:
                assert json.load(response)["data"][0]["id"] == "albireo-demo"
            while messages[-2:] != ["WATCHDOG=1"] * 2:
                messages.append(notify.recv(4096).decode())
            process.send_signal(signal.SIGHUP)
            while messages[-1] != "READY=1":
                messages.append(notify.recv(4096).decode())
            assert any(message.startswith("RELOADING=1\nMONOTONIC_USEC=") for message in messages)
            process.send_signal(signal.SIGTERM)
            while not messages[-1].startswith("STOPPING=1\n"):
                messages.append(notify.recv(4096).decode())
            assert process.stderr is not None
            stderr = process.stderr.read()
            assert process.wait(60) == 0
    first = [message.partition("=")[0] for message in messages[: messages.index("WATCHDOG=1")]]
    assert set(first) == {"EXTEND_TIMEOUT_USEC", "STATUS", "READY"} and first.count("READY") == 1
    assert f"albireo ready: {url} (socket passed by systemd" in stderr


@pytest.mark.slow
@pytest.mark.skipif(NO_MACHINE is not None, reason=str(NO_MACHINE))
def test_systemd_starts_watches_restarts_and_stops_the_service() -> None:
    with Machine() as machine:
        dropin = "/etc/systemd/system/albireo.service.d/test.conf"
        machine.write(dropin, f"[Service]\nWatchdogSec={WATCHDOG_S}s\nTimeoutAbortSec=1s\n")
        machine.run(PROGRAM, "systemd", "install", "--executable", PROGRAM, "--socket", "--now", "--", *NO_MODEL)
        assert machine.property("StatusText").startswith("serving albireo-demo")
        assert machine.property("User") == "albireo"
        models = machine.run("curl", "--silent", "http://127.0.0.1:8000/v1/models").stdout
        assert json.loads(models)["data"][0]["id"] == "albireo-demo"
        # priorities, and no times of our own
        lines = machine.run("journalctl", "--unit=albireo", "--output=json").stdout.splitlines()
        ready = next(entry for entry in map(json.loads, lines) if entry["MESSAGE"].startswith("albireo ready"))
        assert ready["PRIORITY"] == "6" and "socket passed by systemd" in ready["MESSAGE"]

        time.sleep(1.5 * WATCHDOG_S)
        first = machine.property("MainPID")
        assert machine.property("NRestarts") == "0", "the watchdog is fed"
        machine.run("kill", "-STOP", first)
        assert eventually(lambda: machine.property("NRestarts") == "1", 30), "the watchdog bites"
        # the socket is systemd's: who comes meanwhile waits
        models = machine.run("curl", "--silent", "--max-time", "80", "http://127.0.0.1:8000/v1/models").stdout
        assert json.loads(models)["data"][0]["id"] == "albireo-demo"
        assert machine.property("MainPID") != first

        machine.write("/etc/albireo/albireo.env", "ALBIREO_API_KEY=secret\n")
        machine.run("systemctl", "reload", "albireo")
        url = "http://127.0.0.1:8000/v1/models"
        assert eventually(lambda: "invalid_api_key" in machine.run("curl", "--silent", url).stdout)
        models = machine.run("curl", "--silent", "--header", "Authorization: Bearer secret", url).stdout
        assert json.loads(models)["data"][0]["id"] == "albireo-demo"
        assert machine.property("ActiveState") == "active"

        machine.run("systemctl", "stop", "albireo.socket", "albireo.service")
        assert machine.property("Result") == "success" and machine.property("ActiveState") == "inactive"
        assert machine.run("ls", "/run/albireo", check=False).returncode, "the run directory is left"
        machine.run(PROGRAM, "systemd", "uninstall")
        assert machine.property("LoadState") == "not-found"


@pytest.mark.skipif(NO_MACHINE is not None, reason=str(NO_MACHINE))
def test_systemd_does_not_start_again_what_has_bad_arguments_and_passes_every_word_on() -> None:
    with Machine() as machine:
        machine.run(
            PROGRAM, "systemd", "install", "--executable", PROGRAM, "--", *NO_MODEL, "--served-model-name", *WORDS
        )
        script = '#!/bin/sh\nfor word in "$@"; do echo "[$word]"; done\nexit 2\n'
        machine.write(PROGRAM, script)
        assert machine.run("systemctl", "start", "albireo.service", check=False).returncode
        assert machine.property("ActiveState") == "failed" and machine.property("NRestarts") == "0"
        assert machine.property("ExecMainStatus") == "2"
        said = machine.run("journalctl", "--unit=albireo", "--output=cat").stdout.splitlines()
        expected = [f"[{word}]" for word in ("serve", *ENV_FILE, *NO_MODEL, "--served-model-name", *WORDS)]
        assert [line for line in said if line.startswith("[")] == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(NO_MACHINE is not None, reason=str(NO_MACHINE))
def test_a_model_runs_with_what_the_unit_leaves_it() -> None:
    with Machine() as machine:
        machine.run(PROGRAM, "systemd", "install", "--executable", PROGRAM, "--now", "--", *SMALL, timeout_s=400)
        body = json.dumps({"model": "albireo-demo", "prompt": "os.path", "max_tokens": 8, "temperature": 0})
        answer = machine.run(
            "curl", "--silent", "--header", "Content-Type: application/json", "--data", body,
            "http://127.0.0.1:8000/v1/completions",
        )  # fmt: skip
        assert json.loads(answer.stdout)["usage"]["completion_tokens"] == 8
        assert machine.run("find", "/var/cache/albireo", "-name", "*.nbc").stdout, "kernels are kept for the next start"
        journal = machine.run("journalctl", "--unit=albireo", "--output=cat", "--priority=warning").stdout.strip()
        assert journal in ("", "-- No entries --")
