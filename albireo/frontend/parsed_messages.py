"""The parsers of one response's sequences, and what they have found so far."""

from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.generation import Generation
from albireo.frontend.message_parsing import MessageParsing
from albireo.frontend.message_parts import MessageParser, Part, ToolCallBegin
from albireo.frontend.output_parsers.reasoning import PlainText
from albireo.frontend.reasoning_tokens import ReasoningTokens


class ParsedMessages:
    """The parsers of one response's sequences, and what they found."""

    def __init__(
        self,
        parsing: MessageParsing | None,
        texts: DetokenizerFactory | None = None,
        skip_special_tokens: bool = True,
    ) -> None:
        """`parsing` None: all is text. With `texts` the tokens of the reasoning are counted, where it is read.
        `skip_special_tokens`: whether the sequences' texts are without them."""
        self._parsing = parsing or MessageParsing(PlainText)
        self._texts = texts if self._parsing.reads_reasoning else None
        self._skip_special_tokens = skip_special_tokens
        self._reasoning: dict[int, ReasoningTokens] = {}
        self._parsers: dict[int, MessageParser] = {}
        self._with_calls: set[int] = set()

    def take(self, generation: Generation) -> tuple[list[Part], list[int]]:
        """What is new of a sequence, and its token ids where they are kept."""
        parser = self._parsers.get(generation.index)
        if parser is None:
            parser = self._begin(generation.index)
        text, token_ids = generation.take()
        parts = parser.feed(text)
        if generation.ended:
            parts += parser.end()
        if any(type(part) is ToolCallBegin for part in parts):
            self._with_calls.add(generation.index)
        if self._reasoning:
            self._reasoning[generation.index].add(text, token_ids, parts)
        return parts, token_ids

    def has_calls(self, generation: Generation) -> bool:
        """So far."""
        return generation.index in self._with_calls

    def finish_reason(self, generation: Generation) -> str | None:
        """`tool_calls` in place of `stop`, where the message has calls that the model chose to make."""
        reason = generation.finish_reason
        if reason == "stop" and self._parsing.ends_with_calls and self.has_calls(generation):
            return "tool_calls"
        return reason

    def num_reasoning_tokens(self, generation: Generation) -> int:
        """So far; 0 where they are not counted."""
        counted = self._reasoning.get(generation.index)
        return 0 if counted is None else counted.count

    def _begin(self, index: int) -> MessageParser:
        if self._texts is not None:
            self._reasoning[index] = ReasoningTokens(self._texts(self._skip_special_tokens, self._parsing.shown))
        parser = self._parsers[index] = self._parsing.make()
        return parser
