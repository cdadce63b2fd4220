"""The loop of a chat at a terminal: a question or a command, an answer that Ctrl-C may stop."""

from collections.abc import Mapping

from albireo.chat.client import AnswerStats, ChatClient, ChatError, Piece
from albireo.chat.conversation import Conversation
from albireo.chat.terminal import COMMANDS, MARGIN, Terminal


class Session:
    """One person, one model, until Ctrl-D."""

    def __init__(
        self, client: ChatClient, terminal: Terminal, system: str | None, fields: Mapping[str, object]
    ) -> None:
        """`fields`: sampling fields of every request."""
        self._client = client
        self._terminal = terminal
        self._conversation = Conversation(system)
        self._fields = fields
        self._failed: str | None = None
        """The last question, if its answer failed: the conversation goes on without it, and `/retry` asks it."""

    def run(self) -> None:
        """Returns when the user ends it."""
        self._terminal.note(f"{self._client.model} at {self._client.base_url}")
        self._terminal.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat\n")
        while True:
            try:
                line = self._terminal.ask()
            except EOFError:
                self._terminal.console.print()
                return
            except KeyboardInterrupt:
                self._terminal.note("\nCtrl-D or /exit ends the chat")
                continue
            if line == "/exit":
                return
            if line.startswith("/") and line.split()[0].count("/") == 1:
                self._command(line)
            elif line:
                self._answer(line)

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        match name:
            case "/help":
                self._terminal.note("\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items()))
                self._terminal.note("  a line that ends in \\ goes on in the next one\n")
            case "/clear":
                self._conversation.clear()
                self._failed = None
                self._terminal.note("a new conversation\n")
            case "/system":
                self._set_system(argument.strip())
            case "/retry":
                question = self._failed or self._conversation.take_back()
                if question is None:
                    self._terminal.note("there is no question yet\n")
                else:
                    self._terminal.note(f"again: {' '.join(question.split())[:60]}")
                    self._answer(question)
            case "/stats":
                self._terminal.note(f"{describe(self._client.stats)}\n")
            case _:
                self._terminal.note(f"no command {name}; /help lists them\n")

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        system = self._conversation.system
        self._terminal.note(f"system message: {system}\n" if system else "no system message\n")

    def _answer(self, question: str) -> None:
        """Asks, and shows what comes. A stopped answer counts as far as it came; a failed one as if never asked."""
        self._conversation.ask(question)
        answer = Answer(self._terminal)
        with self._terminal.answering():
            pieces = self._client.stream(self._conversation.messages(), self._fields)
            try:
                for piece in pieces:
                    answer.add(piece)
            except KeyboardInterrupt:
                answer.ending = "stopped"
            except ChatError as error:
                answer.problem = str(error)
            pieces.close()
            answer.end()
            self._conversation.answer("" if answer.problem else answer.text)
            self._failed = question if answer.problem else None


class Answer:
    """An answer on its way to the terminal: what the model thought in grey, what it says, how it ended."""

    def __init__(self, terminal: Terminal) -> None:
        self.text = ""
        self.ending: str | None = None
        """`stopped` by the user, or the server's finish_reason."""
        self.problem: str | None = None
        self._terminal = terminal
        self._thought = terminal.answer(style="bright_black italic")
        self._shown = terminal.answer()

    def add(self, piece: Piece) -> None:
        if piece.reasoning:
            self._thought.write(piece.reasoning)
        if piece.text:
            if not self.text:
                self._thought.end()
            self.text += piece.text
            self._shown.write(piece.text)
        self.ending = piece.finish_reason or self.ending

    def end(self) -> None:
        """Ends its lines, and says how it ended unless it is just complete."""
        self._thought.end()
        self._shown.end()
        if self.problem is not None:
            self._terminal.error(self.problem)
        elif self.ending == "stopped":
            self._terminal.note(f"{MARGIN}(stopped)")
        elif self.ending == "length":
            self._terminal.note(f"{MARGIN}(cut off: no more tokens are allowed for this answer)")
        elif not self.text:
            self._terminal.note(f"{MARGIN}(no text)")
        self._terminal.console.print()


def describe(stats: AnswerStats | None) -> str:
    """The last answer's figures in one line."""
    if stats is None or stats.first_s is None:
        return "there is no answer yet"
    parts = [f"{stats.num_tokens} tokens"]
    if stats.tokens_per_s is not None:
        parts.append(f"{stats.tokens_per_s:.1f} tokens/s")
    parts.append(f"first after {(stats.first_s - stats.started_s) * 1e3:.0f} ms")
    if stats.prompt_tokens is not None:
        cached = f" ({stats.cached_tokens} of them cached)" if stats.cached_tokens else ""
        parts.append(f"prompt {stats.prompt_tokens} tokens{cached}")
    return ", ".join(parts)
