"""The terminal of a chat: a line editor for questions, answers wrapped at words as they come, notes in grey."""

import re
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from rich.cells import cell_len
from rich.console import Console

COMMANDS: Final = {
    "/help": "this list",
    "/clear": "a new conversation",
    "/system": "TEXT sets the system message; alone it shows it, and `/system -` removes it",
    "/retry": "another answer to the last question",
    "/stats": "speed and tokens of the last answer",
    "/exit": "ends the chat, as Ctrl-D does",
}
MARGIN: Final = "  "
"""Before every line of an answer, as wide as the prompt."""
_PIECES: Final = re.compile(r"\n|[^\S\n]+|\S+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tab and newline: what a model writes must not move the cursor or retitle the window."""
_TAB: Final = "    "


class Terminal:
    """Stdin and stdout of a person. Without colours where NO_COLOR or a file says so."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, emoji=False)
        self._editor = _line_editor() if sys.stdout.isatty() else None

    def ask(self) -> str:
        """A question; lines that end in a backslash go on. Raises EOFError at the end of the input, KeyboardInterrupt
        on Ctrl-C."""
        lines = [self._line("› ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line("… "))
        return "\n".join(lines).strip()

    def note(self, text: str, style: str = "bright_black") -> None:
        """A line that is not part of the conversation."""
        self.console.print(text, style=style, markup=False)

    def error(self, text: str) -> None:
        self.note(text, style="red")

    def answer(self, style: str | None = None) -> "WrappedText":
        """Where an answer, or what the model thought before it, is written."""
        return WrappedText(self.console, style)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While an answer comes: keys are not shown in the middle of it (the next question has them), and Ctrl-C raises
        KeyboardInterrupt once, so that a second one cannot end what tidies up behind the first."""
        fd, before = sys.stdin.fileno(), None
        with suppress(termios.error):
            before = termios.tcgetattr(fd)
            quiet = [*before]
            quiet[3] &= ~termios.ECHO
            termios.tcsetattr(fd, termios.TCSANOW, quiet)
        handler = signal.signal(signal.SIGINT, _raise_once)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            if before is not None:
                termios.tcsetattr(fd, termios.TCSANOW, before)

    def _line(self, prompt: str) -> str:
        if self._editor is None:  # the answers go to a file: what is for the person goes to stderr
            print(prompt, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")
        if self.console.color_system is None:
            return input(prompt)
        # \1 and \2 tell the line editor that what is between them has no width
        return input(f"\1\33[1;34m\2{prompt}\1\33[0m\2")


class WrappedText:
    """Text that is shown as it comes, wrapped at words: a word is written when it is whole, so it never jumps."""

    def __init__(self, console: Console, style: str | None = None) -> None:
        self._console = console
        self._style = style
        self._width = max(console.width - 1, 20)
        self._wraps = console.is_terminal
        self._column = 0
        self._held = ""
        """The beginning of a word, or the space before one."""

    def write(self, text: str) -> None:
        if not self._wraps:
            self._put(text)
            self._column = 0 if text.endswith("\n") else 1
            return
        pieces = _PIECES.findall(self._held + text.replace("\t", _TAB))
        # the last word may go on; one that a line cannot hold, or a script without spaces, need not be waited for
        self._held = ""
        if pieces and pieces[-1] != "\n" and cell_len(pieces[-1]) < self._width // 2 and pieces[-1].isascii():
            self._held = pieces.pop()
        self._show(pieces)

    def end(self) -> None:
        """Writes what was held, and ends the line."""
        self._show(_PIECES.findall(self._held))
        self._held = ""
        if self._column:
            self._put("\n")
            self._column = 0

    def _show(self, pieces: list[str]) -> None:
        for piece in pieces:
            if piece == "\n":
                self._put("\n")
                self._column = 0
            else:
                self._show_word(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", piece))

    def _show_word(self, word: str) -> None:
        if self._column and self._column + cell_len(word) > self._width and cell_len(word) < self._width // 2:
            self._put("\n")
            self._column = 0
            if word.isspace():
                return
        for part in _cut(word, self._width):
            if self._column + cell_len(part) > self._width:
                self._put("\n")
                self._column = 0
            if not self._column:
                self._put(MARGIN)
                self._column = len(MARGIN)
            self._put(part)
            self._column += cell_len(part)

    def _put(self, text: str) -> None:
        self._console.print(text, end="", style=self._style, markup=False, emoji=False, soft_wrap=True)
        self._console.file.flush()


def _cut(word: str, width: int) -> list[str]:
    """A word as it is, or character by character where it may have to be broken."""
    return [word] if word.isascii() and cell_len(word) < width // 2 else list(word)


def _raise_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _line_editor() -> object:
    """GNU readline behind `input`: editing, history for as long as the program runs, Tab for commands."""
    try:
        import readline
    except ImportError:  # a Python without it: plain input works too
        return object()
    readline.set_auto_history(True)
    readline.set_completer_delims(" ")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")
    return readline


def _complete(text: str, state: int) -> str | None:
    found = [f"{name} " for name in COMMANDS if text.startswith("/") and name.startswith(text)]
    return found[state] if state < len(found) else None
