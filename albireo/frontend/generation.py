"""One sequence that the engine works on for a client: its tokens become text, and it ends exactly once."""

from array import array
from typing import Final, Protocol

from albireo.errors import RequestError
from albireo.frontend.detokenizer import Detokenizer
from albireo.frontend.stop_strings import StopStrings
from albireo.frontend.token_scores import Records, TokenScores
from albireo.messages import Finish, Submit
from albireo.shm.layout import LOGPROB

_REASONS = {Finish.EOS: "stop", Finish.STOP_TOKEN: "stop", Finish.LENGTH: "length", Finish.ABORT: "abort"}

_NONE: Final = int(Finish.NONE)
_ABORT: Final = int(Finish.ABORT)
"""Plain integers: naming an enum's member is a look-up in its class, and these are compared for every token."""

MAX_LEFT: Final = 2
"""Replicas that a generation leaves without a token in between. Then it stays with the next, whose coordinator knows
who was in flight, tries these alone and ends the one that kills (`coordinator.MAX_CRASHES`). Not less than two: two
replicas may die at once."""

_SCORE_CHARS = LOGPROB.itemsize // 4
"""What a token's log-probabilities take while they wait, in characters of at most four bytes."""


class Listener(Protocol):
    """Who waits for the output of generations."""

    has_started: bool
    """The engine has computed something for one of them."""

    def on_output(self, generation: "Generation", num_chars: int) -> None:
        """There are that many more characters to take, or as much beside the text, or the generation has ended."""

    def flush(self) -> None:
        """All outputs of a step have been told: now is the time to act on them."""


class SampleGroup:
    """The samples of one prompt: what is counted once per prompt is known when the last has ended."""

    __slots__ = ("max_num_tokens", "num_left", "num_samples")

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.num_left = num_samples
        self.max_num_tokens = 0
        """Output tokens of the longest that has ended."""

    def end(self, num_tokens: int) -> bool:
        """One of them has ended with so many output tokens; True for the last."""
        self.num_left -= 1
        self.max_num_tokens = max(self.max_num_tokens, num_tokens)
        return not self.num_left


class Generation:
    """State of one sequence. Lives on the event loop; `EngineClient` feeds it, its listener takes from it.

    It ends with `finish_reason` or `error`, never both, and changes no more after that.
    """

    __slots__ = (
        "_crashed_at",
        "_detokenizer",
        "_left_at",
        "_min_tokens",
        "_num_crashes",
        "_num_left",
        "_stops",
        "_text",
        "_token_ids",
        "admitted_ns",
        "error",
        "finish_reason",
        "first_token_ns",
        "group",
        "history",
        "index",
        "keeps_token_ids",
        "last_token_ns",
        "listener",
        "max_tokens",
        "num_cached_tokens",
        "num_prompt_tokens",
        "num_to_compute",
        "num_tokens",
        "prompt_index",
        "replica",
        "request_id",
        "scores",
        "shows_stop",
        "stop_reason",
        "submission",
        "submitted_ns",
    )

    def __init__(
        self,
        index: int,
        num_prompt_tokens: int,
        detokenizer: Detokenizer,
        stops: StopStrings | None,
        listener: Listener,
        keeps_token_ids: bool = False,
        shows_stop: bool = False,
        scores: TokenScores | None = None,
        min_tokens: int = 0,
        prompt_index: int = 0,
        max_tokens: int = 0,
        group: SampleGroup | None = None,
    ) -> None:
        self.index = index
        """Number of the choice in the response."""
        self.prompt_index = prompt_index
        """Number of its prompt in the request; with `n` several generations have the same."""
        self.max_tokens = max_tokens
        """Most output tokens that it may have."""
        self.group = group or SampleGroup(1)
        """The samples of its prompt."""
        self.request_id = 0
        """The engine's number for it, from `EngineClient.submit`; another one with each replica that it goes to."""
        self.replica = 0
        """Number of the replica that has it."""
        self.submission: Submit | None = None
        """What the engine was asked for."""
        self.history = array("i")
        """Its tokens so far. With `submission` all that another engine needs to go on with it."""
        self.num_prompt_tokens = num_prompt_tokens
        self._detokenizer = detokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self.listener = listener
        self.keeps_token_ids = keeps_token_ids
        self.shows_stop = shows_stop
        """Whether the text of the stop token belongs to the output (`include_stop_str_in_output`)."""
        self.scores = scores
        """Log-probabilities, where they were asked for."""
        self.num_tokens = 0
        """Output tokens, the one that ended it included."""
        self.num_cached_tokens = 0
        self.num_to_compute = 0
        """Tokens of the prompt that are not computed yet, as `EngineClient` counts them."""
        self.finish_reason: str | None = None
        """stop, length or abort."""
        self.stop_reason: str | int | None = None
        """The stop string or stop token id that ended it; None for the model's own end of sequence."""
        self.error: RequestError | None = None
        self.submitted_ns = 0
        self.admitted_ns = 0
        self.first_token_ns = 0
        self.last_token_ns = 0
        self._crashed_at = 0
        """How many output tokens it had when workers died with it in flight."""
        self._num_crashes = 0
        """How often they did at this very place, as its replica's coordinator says."""
        self._left_at = 0
        """How many output tokens it had when it left a replica that was down."""
        self._num_left = 0
        """How many it has left at this very place."""
        self._text: list[str] = []
        self._token_ids: list[int] = []

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def num_crashes(self) -> int:
        """How often workers have died with it in flight since its newest token."""
        return self._num_crashes if self._crashed_at == self.num_tokens else 0

    @num_crashes.setter
    def num_crashes(self, count: int) -> None:
        self._num_crashes, self._crashed_at = count, self.num_tokens

    def may_leave(self) -> bool:
        """Its replica is down. Whether it is to go on with another, which is noted: one that has left MAX_LEFT without
        a token since may be what kills them."""
        self._num_left = self._num_left + 1 if self._left_at == self.num_tokens else 1
        self._left_at = self.num_tokens
        return self._num_left <= MAX_LEFT

    def feed(self, token_id: int, finish: int) -> None:
        """One row of a step. The listener hears of it when there is text, or when it is the last, and must be flushed
        when the step has been fed."""
        assert not self.ended
        if finish == _ABORT:
            self.listener.on_output(self, self._end(finish, token_id))
            return
        self.num_tokens += 1
        self.history.append(token_id)
        if self.keeps_token_ids:
            self._token_ids.append(token_id)
        num_chars = 0
        # the token that ends a sequence is a signal, not text
        if finish == _NONE or finish not in (Finish.EOS, Finish.STOP_TOKEN) or self.shows_stop:
            num_chars = self._show(self._detokenizer.feed(token_id))
        if finish != _NONE and self.finish_reason is None:
            num_chars += self._end(finish, token_id)
        if num_chars or self.finish_reason is not None:
            self.listener.on_output(self, num_chars if self.scores is None else num_chars + _SCORE_CHARS)

    def fail(self, error: RequestError) -> None:
        """Ends it with an error instead of a finish reason."""
        assert not self.ended
        self.error = error
        self.listener.on_output(self, 0)
        self.listener.flush()

    def take(self) -> tuple[str, list[int]]:
        """The text since the last call, and the token ids if they are kept."""
        text, ids = "".join(self._text), self._token_ids
        self._text.clear()
        self._token_ids = []
        return text, ids

    def take_scores(self) -> Records:
        """The log-probabilities of the output tokens since the last call; only where there are `scores`."""
        assert self.scores is not None
        return self.scores.take(self.num_tokens)

    def _show(self, text: str) -> int:
        """Adds text for the client, up to a stop string; returns the number of characters."""
        if text and self._stops is not None:
            # as in vLLM: a stop string ends nothing before EOS might
            text = self._stops.feed(text, self.num_tokens > self._min_tokens)
            if self._stops.matched is not None:
                self.finish_reason, self.stop_reason = "stop", self._stops.matched
        if text:
            self._text.append(text)
        return len(text)

    def _end(self, finish: int, token_id: int) -> int:
        """The engine's end: what was held back is shown after all. Returns the number of characters."""
        num_chars = self._show(self._detokenizer.flush())
        if self.finish_reason is not None:  # it completed a stop string
            return num_chars
        self.finish_reason = _REASONS[Finish(finish)]
        if finish == Finish.STOP_TOKEN:
            self.stop_reason = token_id
        held = self._stops.flush() if self._stops is not None else ""
        self._text.append(held)
        return num_chars + len(held)


class PromptOnly(Generation):
    """One of which the prompt is all (`echo` with `max_tokens: 0`): the token that the engine computes with it is not
    shown, and not counted."""

    __slots__ = ()

    def feed(self, token_id: int, finish: int) -> None:
        if finish == _ABORT:
            super().feed(token_id, finish)
            return
        self.finish_reason = "length"
        self.listener.on_output(self, 0)
