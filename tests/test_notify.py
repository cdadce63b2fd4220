"""What systemd hears, on a real datagram socket."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from albireo.notify import Notifier


class Listening:
    """systemd's end."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Messages since the last call."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return messages


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    path = str(tmp_path / "notify")
    listening = Listening(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    yield listening
    listening.socket.close()


@pytest.fixture
def clock_ns() -> list[int]:
    return [5_000_000_000]


def test_a_service_s_life_is_told_in_order(systemd: Listening, clock_ns: list[int]) -> None:
    notifier = Notifier(lambda: clock_ns[0])
    notifier.extend_timeout(90)
    clock_ns[0] += 1_000_000_000
    notifier.extend_timeout(90)
    notifier.status("loading weights")
    notifier.status("loading weights")
    clock_ns[0] += 22_000_000_000
    notifier.extend_timeout(90)
    notifier.ready("serving albireo-demo")
    notifier.reloading()
    notifier.ready("serving albireo-demo")
    notifier.stopping("3 streams finish")
    notifier.close()
    notifier.status("not heard any more")
    assert systemd.heard() == [
        "EXTEND_TIMEOUT_USEC=90000000",
        "STATUS=loading weights",
        "EXTEND_TIMEOUT_USEC=90000000",
        "READY=1\nSTATUS=serving albireo-demo",
        "RELOADING=1\nMONOTONIC_USEC=28000000",
        "READY=1\nSTATUS=serving albireo-demo",
        "STOPPING=1\nSTATUS=3 streams finish",
    ]


def test_a_status_cannot_say_anything_else(systemd: Listening) -> None:
    notifier = Notifier()
    notifier.status("a model named\nREADY=1\r\nand \ud800")
    notifier.close()
    assert systemd.heard() == ["STATUS=a model named READY=1 and ?"]


def test_the_watchdog_is_fed_every_quarter_of_its_time_at_most(
    systemd: Listening, clock_ns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier(lambda: clock_ns[0])
    assert notifier.watchdog_interval_s == 30
    fed = []
    for second in range(60):
        clock_ns[0] = second * 1_000_000_000
        notifier.watchdog()
        if systemd.heard() == ["WATCHDOG=1"]:
            fed.append(second)
    notifier.close()
    assert fed == [0, 15, 30, 45]


@pytest.mark.parametrize(
    "environment",
    [{"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}, {}],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(
    environment: dict[str, str], systemd: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notifier = Notifier()
    notifier.watchdog()
    notifier.close()
    assert notifier.watchdog_interval_s is None
    assert systemd.heard() == []


def test_children_cannot_speak_for_the_service(systemd: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    Notifier().close()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"albireo-test-{os.getpid()}"
    listening = Listening("\0" + name)
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    notifier = Notifier()
    notifier.ready("up")
    notifier.close()
    assert listening.heard() == ["READY=1\nSTATUS=up"]
    listening.socket.close()


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    notifier = Notifier()
    notifier.ready("up")
    notifier.watchdog()
    notifier.stopping("down")
    notifier.close()
    assert notifier.watchdog_interval_s is None


@pytest.mark.parametrize("path", ["/nowhere/notify", "vsock:2:1234", "/" + "x" * 200])
def test_a_socket_that_takes_nothing_is_complained_of_once(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notifier = Notifier()
    with caplog.at_level(logging.WARNING):
        notifier.ready("up")
        notifier.stopping("down")
    notifier.close()
    assert len(caplog.messages) == 1 and path in caplog.messages[0]
