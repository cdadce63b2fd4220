"""`albireo-run chat` at a terminal, against servers of its own and against one that runs."""

import codecs
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from server import Server, eventually, processes

pytestmark = pytest.mark.e2e

_IN_TERMINAL = (
    "import fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); from albireo.cli import main; sys.exit(main())"
)
"""The command, with stdin as its controlling terminal, so that a Ctrl-C there is a signal; one that is not ignored, as
it is for whatever a script runs in the background, these tests too."""

ANSWER = r"\n  \S{20}"
"""The beginning of one: the null device writes long words, which are shown when they fill half a line."""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Typist:
    """A chat on a pseudo-terminal: types, and reads what is shown."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self._unread = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        os.set_blocking(fd, False)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def sees(self, pattern: str, timeout_s: float = 60) -> str:
        """What was shown up to the end of `pattern`, without colours; what comes later is left for the next call."""
        deadline = time.monotonic() + timeout_s
        while (match := re.search(pattern, self._unread)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self._unread!r}"
            try:
                self._unread = ESCAPES.sub("", self._unread + self._decoder.decode(os.read(self._fd, 65536)))
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # the chat has ended
                raise AssertionError(f"{pattern!r} is not in {self._unread!r}") from None
        seen, self._unread = self._unread[: match.end()], self._unread[match.end() :]
        return seen


@contextmanager
def chatting(*arguments: str) -> Iterator[Typist]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_TERMINAL, "chat", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Typist(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--device", "null", "--null-step-ms", "20") as running:
        yield running


def test_ctrl_c_stops_the_answer_and_frees_its_place_and_the_chat_goes_on(server: Server) -> None:
    with chatting("--base-url", server.url, "--max-tokens", "1000") as typist:
        typist.sees("› ")
        typist.type("hello\n")
        typist.sees(ANSWER)
        assert server.metric("albireo:num_requests_running") == 1
        typist.type("\x03")
        typist.sees(r"\(stopped\)")
        assert eventually(lambda: server.metric("albireo:num_requests_running") == 0)
        typist.sees("› ")
        typist.type("\x03")
        typist.sees("Ctrl-D or /exit ends the chat")
        typist.type("/stats\n")
        typist.sees(r"\d+ tokens")
        typist.type("\x04")
        assert typist.process.wait(60) == 0


def test_a_stopped_answer_is_part_of_what_comes_next(server: Server) -> None:
    with chatting("--base-url", server.url, "--max-tokens", "1000") as typist:
        typist.sees("› ")
        before = server.metric("albireo:prompt_tokens_total")
        typist.type("hello\n")
        typist.sees(ANSWER)
        typist.type("\x03")
        typist.sees(r"\(stopped\)")
        first = server.metric("albireo:prompt_tokens_total") - before
        typist.type("hello\n")
        assert eventually(lambda: server.metric("albireo:prompt_tokens_total") > before + first)
        assert server.metric("albireo:prompt_tokens_total") - before > 3 * first
        typist.type("\x03")
        typist.type("/exit\n")
        assert typist.process.wait(60) == 0


def test_an_error_of_the_server_is_shown_and_the_conversation_goes_on(server: Server) -> None:
    too_long = "word " * 3000
    with chatting("--base-url", server.url, "--max-tokens", "4", "--system", too_long) as typist:
        typist.sees("› ")
        typist.type("hello\n")
        typist.sees(r"\(HTTP 400\)")
        typist.type("/system -\n")
        typist.sees("no system message")
        typist.type("hello\n")
        typist.sees("cut off")


@pytest.mark.slow
def test_a_chat_of_its_own_server_shows_the_start_and_leaves_nothing_behind() -> None:
    with chatting("--temperature", "0") as typist:
        typist.sees("starting a server, ")
        typist.sees("albireo-demo at http://127.0.0.1:")
        typist.sees("› ")
        children = {pid for pid, parent, _ in processes() if parent == typist.process.pid}
        assert len(children) == 1
        typist.type("What does os.path.join do?\n")
        typist.sees("pathname components")
        typist.type("/exit\n")
        assert typist.process.wait(60) == 0
        assert not {pid for pid, _, _ in processes()} & children


def test_the_server_of_a_chat_ends_with_it_however_that_one_dies() -> None:
    with chatting("--", "--device", "null") as typist:
        typist.sees("› ")
        children = {pid for pid, parent, _ in processes() if parent == typist.process.pid}
        assert len(children) == 1
        typist.process.send_signal(signal.SIGKILL)
        typist.process.wait()
        assert eventually(lambda: not {pid for pid, _, _ in processes()} & children)
