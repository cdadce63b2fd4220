"""`echo` of `/v1/completions`: the prompt in front of the output, with its log-probabilities where they are wanted."""

from collections.abc import Sequence

from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.logprobs import CompletionLogprobs
from albireo.frontend.token_scores import Records

Prompt = str | list[str | int | list[int]] | None


class Echo:
    """The prompts of one request. A text is given back as it came; token ids as their text, special tokens shown."""

    def __init__(self, given: Prompt, prompts: Sequence[Sequence[int]], texts: DetokenizerFactory) -> None:
        """`given`: the request's `prompt`; `prompts`: the same as token ids, one list for each."""
        given_texts = [given] if isinstance(given, str) else [each for each in given or () if isinstance(each, str)]
        self._given: list[str] | None = given_texts or None
        self._prompts = prompts
        self._texts = texts
        self._taken: set[int] = set()

    def take(self, choice: int, index: int) -> str:
        """The text of prompt `index`, once for each choice."""
        if choice in self._taken:
            return ""
        self._taken.add(choice)
        return self._text(index)

    def add_logprobs(self, index: int, records: Records, writer: CompletionLogprobs) -> int:
        """Writes the prompt's tokens, `records[num_prompt_tokens]`; returns the length of its text in characters."""
        text = self._text(index)
        # SentencePiece puts a space in front, which the text that came has not
        begin = -1 if self._given is not None and self._decode(index) == " " + text else 0
        writer.text_begins(self._texts(self._given is not None), begin)
        writer.add_prompt(self._prompts[index], records)
        return len(text)

    def _text(self, index: int) -> str:
        return self._decode(index) if self._given is None else self._given[index]

    def _decode(self, index: int) -> str:
        detokenizer = self._texts(self._given is not None)
        return "".join(map(detokenizer.feed, self._prompts[index])) + detokenizer.flush()
