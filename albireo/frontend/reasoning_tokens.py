"""How many of a sequence's tokens are its reasoning's."""

from collections import deque
from collections.abc import Iterable

from albireo.frontend.detokenizer import Detokenizer
from albireo.frontend.message_parts import Part, ReasoningPart
from albireo.frontend.output_parsers.reasoning import BEGIN


class ReasoningTokens:
    """Counts the tokens from the output's first to the one with the last character of the reasoning.

    The reasoning stands in front and in one piece. So its length, known from the parts, is a place in the output, and
    tokens are counted while their text, detokenized again, does not reach it. That is the same however the output was
    cut, and costs nothing once the reasoning is over."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        """`detokenizer`: a fresh one, of the kind that the sequence has."""
        self.count = 0
        self._detokenizer = detokenizer
        self._token_ids: deque[int] = deque()
        """Those that are not counted yet."""
        self._head: list[str] | None = []
        """The output until the reasoning begins; None from then on."""
        self._end = 0
        """Where the reasoning ends, so far, in characters."""
        self._position = 0
        """Where the text of the counted tokens ends."""
        self._is_over = False

    def add(self, text: str, token_ids: Iterable[int], parts: Iterable[Part]) -> None:
        """What is new of the sequence, and the parts that came of it."""
        if self._is_over:
            return
        self._token_ids.extend(token_ids)
        if self._head is not None:
            self._head.append(text)
        for part in parts:
            if type(part) is not ReasoningPart:
                self._is_over = True
                break
            if self._head is not None:
                self._end, self._head = _begin("".join(self._head), part.text), None
            self._end += len(part.text)
        while self._position < self._end and self._token_ids:
            self._position += len(self._detokenizer.feed(self._token_ids.popleft()))
            self.count += 1
        if self._is_over:
            self._token_ids.clear()


def _begin(output: str, reasoning: str) -> int:
    """Where the reasoning begins, behind the marker if there is one."""
    num_spaces = len(output) - len(output.lstrip())
    behind = num_spaces + len(BEGIN) if output.startswith(BEGIN, num_spaces) else 0
    return max(output.find(reasoning, behind), 0)
