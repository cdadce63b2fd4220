"""A conversation so far: what the next request sends, and what can be taken back."""

from albireo.chat.client import Message


class Conversation:
    """Turns of user and assistant in alternation, under a system message."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system or None
        self._turns: list[Message] = []

    def messages(self) -> list[Message]:
        """For a request: the system message, where there is one, and all turns."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self._turns]

    def ask(self, text: str) -> None:
        """The user's turn."""
        self._turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """The assistant's turn, whole or as far as it came. Without a word of it the question goes too, since two
        questions in a row are not what models know."""
        if text.strip():
            self._turns.append({"role": "assistant", "content": text})
        else:
            self._turns.pop()

    def take_back(self) -> str | None:
        """Drops the last question with its answer, and returns the question; None at the beginning."""
        while self._turns:
            turn = self._turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return None

    def clear(self) -> None:
        """A new conversation under the same system message."""
        self._turns.clear()

    def __len__(self) -> int:
        return len(self._turns)
