"""Which tokens a message's text is made of, so that their log-probabilities stand beside it and no others do."""

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from msgspec import Struct

from albireo.frontend.detokenizer import Detokenizer
from albireo.frontend.message_parts import MessageParser, Part, TextPart
from albireo.frontend.output_parsers.held import num_held

Entry = dict[str, Any]
"""A token's log-probability, as the client gets it."""


class _Token(Struct):
    text: str
    """What it adds to the output; empty where it completes no character."""
    entry: Entry | None
    """None once a part of the message has it."""
    opens: bool = False
    """Its last bytes begin a character that a later token completes."""


class ScoredParser:
    """A `MessageParser` around another, to which it feeds the output token by token.

    A token belongs to a text part if a character of the part is the token's, or if it has begun one. What the other
    parser holds back is put down to the part that it appears in at last. Tokens of reasoning, calls and markers are
    dropped, and so are those that the client does not see, as the end of sequence."""

    def __init__(self, parser: MessageParser, detokenizer: Detokenizer, markers: Collection[str]) -> None:
        """`detokenizer`: a fresh one, of the kind that the sequence has. `markers`: what `parser` looks for."""
        self._parser = parser
        self._detokenizer = detokenizer
        self._markers = tuple(markers)
        self._tokens: deque[_Token] = deque()
        """Those that the parser was not fed yet."""
        self._output = ""
        """What came after the last of those that it was fed: less than a token."""
        self._open: list[_Token] = []
        """Those that it was fed, and that are not in a part yet."""
        self._entries: list[list[Entry]] = []

    def add(self, token_ids: Iterable[int], entries: Iterable[Entry]) -> None:
        """The next tokens, before their text is fed."""
        for token_id, entry in zip(token_ids, entries, strict=True):
            text = self._detokenizer.feed(token_id)
            self._tokens.append(_Token(text, entry, self._detokenizer.inside_character))

    def take(self) -> list[list[Entry]]:
        """For each part since the last call the entries of its tokens: none but for text."""
        entries, self._entries = self._entries, []
        return entries

    def feed(self, text: str) -> list[Part]:
        output, used = self._output + text, 0
        parts: list[Part] = []
        while self._tokens and used + len(self._tokens[0].text) <= len(output):
            token = self._tokens.popleft()
            used += len(token.text)
            self._open.append(token)
            if token.text:
                parts += self._assign(self._parser.feed(token.text))
        self._output = output[used:]
        return parts

    def end(self) -> list[Part]:
        """A stop string may have cut the last token's text short; what no token has is what the end made of half a
        character."""
        if rest := self._output:
            entry = self._tokens[0].entry if self._tokens else None
            self._open.append(_Token(rest, entry))
        return self._assign((self._parser.feed(rest) if rest else []) + self._parser.end())

    def _assign(self, parts: list[Part]) -> list[Part]:
        """Gives each of the parts its entries; the same parts."""
        if not parts:
            return parts
        output = "".join(token.text for token in self._open)
        at = 0
        for number, part in enumerate(parts):
            entries: list[Entry] = []
            if type(part) is TextPart:
                begin = self._find(output, part.text, at, is_last=number == len(parts) - 1)
                at = begin + len(part.text)
                entries = self._take_between(begin, at)
            self._entries.append(entries)
        self._open = _tokens_behind(self._open, at) if type(parts[-1]) is TextPart else []
        return parts

    def _find(self, output: str, text: str, start: int, is_last: bool) -> int:
        """Where in the output the part is. In front of it a marker may have been dropped; behind the last part there
        is only what is held back."""
        if not is_last:
            return max(output.find(text, start), start)
        end = len(output) - num_held(output, self._markers)
        if not output.endswith(text, start, end):
            end = len(output)
            if not output.endswith(text, start):
                return max(output.rfind(text, start), start)
        return end - len(text)

    def _take_between(self, begin: int, end: int) -> list[Entry]:
        entries: list[Entry] = []
        position = 0
        for token in self._open:
            behind = position + len(token.text)
            is_inside = position < end and (behind > begin or (behind == begin and (position == behind or token.opens)))
            if is_inside and token.entry is not None:
                entries.append(token.entry)
                token.entry = None
            position = behind
        return entries


def _tokens_behind(tokens: Iterable[_Token], at: int) -> list[_Token]:
    """What of the tokens stands behind that place of their text."""
    rest = []
    for token in tokens:
        text = token.text[max(at, 0) :]
        if text or (not token.text and at <= 0) or (token.opens and at <= len(token.text)):
            rest.append(_Token(text, token.entry, token.opens))
        at -= len(token.text)
    return rest
