"""A request as the coordinator knows it, and the queue in which it waits."""

import heapq
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from enum import Enum, auto
from typing import Final

import numpy as np
import numpy.typing as npt

from albireo.messages import SamplingParams

Tokens = npt.NDArray[np.int32]


NO_SCORES: Final = 2**31 - 1
"""A position beyond every sequence."""


class State(Enum):
    NEW = auto()
    """Not in the queue yet: its grammar is being compiled."""
    WAITING = auto()
    """In the queue; also after a preemption."""
    RUNNING = auto()
    """Owns a slot and KV blocks."""
    FINISHED = auto()
    """Its terminal event is decided; nothing of it is left."""


@dataclass(slots=True, eq=False)
class Request:
    """One sequence. While it runs its tokens lie in the slot table; `tokens` is what it was last admitted with."""

    frontend: int
    """Index of the frontend that sent it."""
    request_id: int
    sampling: SamplingParams
    tokens: Tokens
    """Prompt, and behind it what was generated before a preemption."""
    max_total_tokens: int
    """Prompt and output together, from max_tokens and the model's context."""
    priority: int
    cache_salt: str
    arrival: int
    """Number in order of arrival; kept through preemptions."""
    arrival_ns: int = 0
    """When a frontend had it ready, CLOCK_MONOTONIC; kept also when another coordinator gets it."""
    deadline_ns: int = 0
    """While it waits for its first step: when that has lasted too long; 0 for never."""
    sample_group: int = 0
    """As of `messages.Submit`."""
    grammar_handle: int = 0
    """What the grammar process knows it by; 0 for a request without a grammar."""
    state: State = State.NEW
    slot: int = -1
    num_in_flight: int = 0
    """After a preemption: sampled tokens still on their way. It cannot be admitted before they are here."""
    hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks of `tokens`; filled at admission."""
    num_admissions: int = 0
    num_output_tokens: InitVar[int] = 0
    """How many of `tokens` are output, of a request that another coordinator had."""
    num_prompt_tokens: int = field(init=False)
    num_scored: int = 0
    """Prompt logprobs delivered: of the tokens at positions 1 to this."""
    score_from: int = NO_SCORES
    """Since its last admission: first position whose prompt logprob is wanted."""

    crashed_at: int = -1
    """How many tokens it had when workers died while a step of it was in flight; -1 if that has not happened."""
    num_crashes: int = 0
    """How often that happened at this very place."""

    def __post_init__(self, num_output_tokens: int) -> None:
        self.num_prompt_tokens = self.tokens.size - num_output_tokens

    @property
    def has_output(self) -> bool:
        """Not running: it had tokens when it last was."""
        return self.tokens.size > self.num_prompt_tokens

    @property
    def is_suspect(self) -> bool:
        """Waiting: it may be what killed the workers, since it has not got on since then."""
        return self.crashed_at == self.tokens.size

    def note_crash(self) -> None:
        """Workers have died while a step of it was in flight; it is back in the queue."""
        self.num_crashes = self.num_crashes + 1 if self.is_suspect else 1
        self.crashed_at = self.tokens.size

    @property
    def has_grammar(self) -> bool:
        """Each of its tokens waits for a mask (`shm.grammar_masks`)."""
        return self.grammar_handle != 0

    @property
    def wants_scores(self) -> bool:
        """Some prompt logprobs are still to come."""
        return self.sampling.prompt_logprobs >= 0 and self.num_scored < self.num_prompt_tokens - 1


Order = tuple[int, int, int]

Entry = tuple[int, int, int, Request]
"""Of a heap: `WaitingQueue.order` and whose it is."""


class WaitingQueue:
    """Requests in the order in which they should start. Removal is lazy: `drop` only uncounts.

    Long ones have a heap of their own, so that others can go past them."""

    def __init__(
        self, by_priority: bool, long_tokens: int, on_drop: Callable[[Request], None] = lambda request: None
    ) -> None:
        """Who has more tokens than `long_tokens` is long. `on_drop` hears of requests that end while they wait."""
        self._by_priority = by_priority
        self._long_tokens = long_tokens
        self._on_drop = on_drop
        self._short: list[Entry] = []
        self._long: list[Entry] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def order(self, request: Request) -> Order:
        """Smaller starts first and is preempted last. Time goes before number: a coordinator that takes another's place
        hears of old requests again, from each frontend in turn."""
        return (request.priority if self._by_priority else 0, request.arrival_ns, request.arrival)

    def push(self, request: Request) -> None:
        request.state = State.WAITING
        heap = self._long if request.tokens.size > self._long_tokens else self._short
        heapq.heappush(heap, (*self.order(request), request))
        self._size += 1

    def head(self, without_long: bool = False) -> Request | None:
        """Who is next, or who is next but for the long ones. A long suspect is so only when no short one is: until it
        has got on, which takes many steps, nobody else is admitted."""
        short, long = _head(self._short), _head(self._long)
        if short is None or long is None or without_long:
            entry = short if short is not None or without_long else long
            return None if entry is None else entry[-1]
        return short[-1] if short < long or (short[-1].is_suspect and long[-1].is_suspect) else long[-1]

    def pop(self, head: Request) -> Request:
        """Takes the request that `head` has just returned."""
        heap = self._short if self._short and self._short[0][-1] is head else self._long
        self._size -= 1
        return heapq.heappop(heap)[-1]

    def drop(self, request: Request) -> None:
        """Ends a waiting request. Its entry stays until it reaches the head or dropped ones are the majority: under
        priorities a client could otherwise fill the memory with requests that it has aborted."""
        request.state = State.FINISHED
        self._size -= 1
        self._on_drop(request)
        if len(self._short) + len(self._long) > 2 * self._size + 64:
            for heap in (self._short, self._long):
                heap[:] = [entry for entry in heap if entry[-1].state is State.WAITING]
                heapq.heapify(heap)


def _head(heap: list[Entry]) -> Entry | None:
    """Its first entry, once those before it that have ended are gone."""
    while heap and heap[0][-1].state is not State.WAITING:
        heapq.heappop(heap)
    return heap[0] if heap else None
