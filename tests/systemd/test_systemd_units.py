"""The unit files: what they say, and what systemd's own checks say of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from albireo.errors import StartupError
from albireo.systemd.units import ServiceSettings, listen_stream, quote, render

TOOLS = Path(__file__).parent.parent.parent / "tools" / "systemd"
MAX_EXPOSURE = 2.5
"""Of `systemd-analyze security`, from 0 to 10; below 5 it says OK."""

has_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def settings_in(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units of a program that exists here."""
    for name, text in render(ServiceSettings(executable=("/bin/true",))).items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_files_in_tools_are_what_the_installer_writes() -> None:
    written = {path.name: path.read_text() for path in TOOLS.iterdir() if path.name.startswith("albireo.")}
    assert written == render(ServiceSettings()), "python tools/systemd/render.py writes them anew"


def test_the_service_has_what_the_server_counts_on() -> None:
    unit = settings_in(render(ServiceSettings(shutdown_timeout_s=60, worker_timeout_s=90))["albireo.service"])
    expected = {
        "Type": "notify", "NotifyAccess": "main", "KillMode": "mixed", "Restart": "on-failure",
        "RestartPreventExitStatus": "2", "RuntimeDirectory": "albireo", "LimitMEMLOCK": "infinity",
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes",
        "EnvironmentFile": "-/etc/albireo/albireo.env", "ExecReload": "/bin/kill -HUP $MAINPID",
    }  # fmt: skip
    assert {key: unit[key] for key in expected} == {key: [value] for key, value in expected.items()}
    assert int(unit["TimeoutStopSec"][0].removesuffix("s")) > 60
    assert int(unit["WatchdogSec"][0].removesuffix("s")) > 90


def test_nothing_hides_the_gpus_or_forbids_compiled_kernels() -> None:
    unit = settings_in(render(ServiceSettings())["albireo.service"])
    assert not {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"} & set(unit)
    assert "ProcSubset" not in unit


@has_systemd
def test_systemd_finds_nothing_wrong(units: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no", str(units / "albireo.service"), str(units / "albireo.socket")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@has_systemd
def test_systemd_calls_the_service_s_exposure_low(units: Path) -> None:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(units / "albireo.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze is too old for --offline")
    match = re.search(r"Overall exposure level for albireo.service: ([\d.]+)", done.stdout)
    assert match is not None and float(match[1]) <= MAX_EXPOSURE, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("plain", "plain"),
        ("a b", '"a b"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('say "so"', '"say \\"so\\""'),
        ("back\\slash", '"back\\\\slash"'),
        (";", '";"'),
        ("", '""'),
    ],
)
def test_a_word_of_a_command_line_is_quoted_for_systemd(word: str, written: str) -> None:
    assert quote(word) == written


def test_a_control_character_cannot_become_another_line() -> None:
    with pytest.raises(StartupError, match="control character"):
        quote("x\nExecStartPre=/bin/sh")


@pytest.mark.parametrize(
    ("host", "port", "uds", "expected"),
    [
        ("127.0.0.1", 8000, None, "127.0.0.1:8000"),
        ("localhost", 80, None, "127.0.0.1:80"),
        ("", 80, None, "0.0.0.0:80"),
        ("::", 8000, None, "[::]:8000"),
        ("127.0.0.1", 8000, "/run/albireo.sock", "/run/albireo.sock"),
    ],
)
def test_the_socket_unit_listens_where_the_flags_say(host: str, port: int, uds: str | None, expected: str) -> None:
    assert listen_stream(host, port, uds) == expected


@pytest.mark.parametrize(("host", "port"), [("gpu.example.org", 8000), ("127.0.0.1", 0)])
def test_a_socket_unit_needs_a_fixed_address(host: str, port: int) -> None:
    with pytest.raises(StartupError, match="--socket needs") as raised:
        listen_stream(host, port, None)
    assert raised.value.exit_code == 2
