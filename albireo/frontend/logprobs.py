"""Log-probabilities in OpenAI's two shapes, and vLLM's `prompt_logprobs`.

A token is shown as it is by itself: U+FFFD where its bytes are no whole character (`bytes` has the real ones). Every
output token has an entry, as in vLLM: the one that ended the sequence and those of a stop string too, though the text
has them not. JSON has no infinity: a log-probability is at least LOWEST, as in vLLM.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from albireo.frontend.detokenizer import Detokenizer, DetokenizerFactory
from albireo.frontend.token_scores import Records

LOWEST = -9999.0

Score = tuple[int, float, int, list[int], list[float]]
"""Token id, log-probability, rank, and the likely tokens beside it by falling probability with theirs."""


def scores(records: Records, num_top: int) -> Iterator[Score]:
    """The records as Python values, each with at most `num_top` likely tokens."""
    logprobs = np.maximum(records["logprob"], LOWEST).tolist()
    top_ids = records["top_ids"][:, :num_top].tolist()
    top_logprobs = np.maximum(records["top_logprobs"][:, :num_top], LOWEST).tolist()
    nums = np.minimum(records["num_top"], num_top).tolist()
    columns = zip(records["token"].tolist(), logprobs, records["rank"].tolist(), top_ids, top_logprobs, strict=True)
    for (token, logprob, rank, ids, values), num in zip(columns, nums, strict=True):
        yield token, logprob, rank, ids[:num], values[:num]


class TokenNames:
    """How single tokens are written in responses."""

    def __init__(self, factory: DetokenizerFactory) -> None:
        self._piece = factory.piece

    def text(self, token_id: int) -> str:
        piece = self._piece(token_id)
        return piece if isinstance(piece, str) else piece.decode(errors="replace")

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """A chat's `{token, logprob, bytes}`."""
        piece = self._piece(token_id)
        data = piece.encode() if isinstance(piece, str) else piece
        return {"token": self.text(token_id), "logprob": logprob, "bytes": list(data)}


def chat_logprobs(records: Records, num_top: int, names: TokenNames) -> dict[str, Any]:
    """A chat choice's `logprobs`."""
    content = [
        names.entry(token, logprob) | {"top_logprobs": list(map(names.entry, top_ids, top_logprobs))}
        for token, logprob, _, top_ids, top_logprobs in scores(records, num_top)
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(records: Records, num_top: int, names: TokenNames) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: null for the first token, then what each token and the likely ones had."""
    result: list[dict[str, Any] | None] = []
    for token, logprob, rank, top_ids, top_logprobs in scores(records, num_top):
        ranked = [(token, logprob, rank), *zip(top_ids, top_logprobs, range(1, num_top + 1), strict=False)]
        entries: dict[str, Any] = {}
        for id_, value, place in ranked:  # the token itself may be one of the likely ones
            entries.setdefault(str(id_), {"logprob": value, "rank": place, "decoded_token": names.text(id_)})
        result.append(entries if rank else None)
    return result


class CompletionLogprobs:
    """One choice's `logprobs`, piece by piece: `text_offset` goes on from one piece to the next.

    An offset is where in the choice's text a token begins, in characters. What a token does not show (half a
    character, a special token that is skipped) moves no offset.
    """

    def __init__(self, num_top: int, names: TokenNames) -> None:
        self._num_top, self._names = num_top, names
        self._detokenizer: Detokenizer | None = None
        self._offset = 0
        self._parts: dict[str, list[Any]] = {}
        self._clear()

    def text_begins(self, detokenizer: Detokenizer, offset: int) -> None:
        """The next tokens are those of a text with `offset` characters in front: the prompt's, or the output's."""
        self._detokenizer, self._offset = detokenizer, offset

    def add_prompt(self, token_ids: Sequence[int], records: Records) -> None:
        """The prompt's tokens; the first has no log-probability, since nothing comes before it."""
        for token, (_, logprob, rank, top_ids, top_logprobs) in zip(
            token_ids, scores(records, self._num_top), strict=True
        ):
            if rank:
                self._add(token, logprob, self._top(token, logprob, top_ids, top_logprobs))
            else:
                self._add(token, None, None)

    def add(self, records: Records) -> None:
        """Output tokens."""
        for token, logprob, _, top_ids, top_logprobs in scores(records, self._num_top):
            self._add(token, logprob, self._top(token, logprob, top_ids, top_logprobs))

    def take(self) -> dict[str, list[Any]] | None:
        """The object for the tokens added since the last call; None where there are none."""
        parts = self._parts
        self._clear()
        return parts if parts["tokens"] else None

    def _clear(self) -> None:
        self._parts = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def _add(self, token: int, logprob: float | None, top: dict[str, float] | None) -> None:
        assert self._detokenizer is not None
        parts = self._parts
        parts["tokens"].append(self._names.text(token))
        parts["token_logprobs"].append(logprob)
        parts["top_logprobs"].append(top)
        # a prompt's offset may start below 0: see `echo.Echo`
        parts["text_offset"].append(max(self._offset, 0))
        self._offset += len(self._detokenizer.feed(token))

    def _top(self, token: int, logprob: float, ids: list[int], values: list[float]) -> dict[str, float]:
        """By text; of several tokens with one text the likeliest. The token itself is always there."""
        top: dict[str, float] = {}
        for id_, value in zip([*ids, token], [*values, logprob], strict=True):
            top.setdefault(self._names.text(id_), value)
        return top
