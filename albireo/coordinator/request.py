"""A request as the coordinator knows it, and the queue in which it waits."""

import heapq
from dataclasses import dataclass, field
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
    num_prompt_tokens: int = field(init=False)
    num_scored: int = 0
    """Prompt logprobs delivered: of the tokens at positions 1 to this."""
    score_from: int = NO_SCORES
    """Since its last admission: first position whose prompt logprob is wanted."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.tokens.size

    @property
    def has_grammar(self) -> bool:
        """Each of its tokens waits for a mask (`shm.grammar_masks`)."""
        return self.grammar_handle != 0

    @property
    def wants_scores(self) -> bool:
        """Some prompt logprobs are still to come."""
        return self.sampling.prompt_logprobs >= 0 and self.num_scored < self.num_prompt_tokens - 1


class WaitingQueue:
    """Requests in the order in which they should start. Removal is lazy: `drop` only uncounts."""

    def __init__(self, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._heap: list[tuple[int, int, Request]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def order(self, request: Request) -> tuple[int, int]:
        """Smaller starts first and is preempted last."""
        return (request.priority if self._by_priority else 0, request.arrival)

    def push(self, request: Request) -> None:
        request.state = State.WAITING
        heapq.heappush(self._heap, (*self.order(request), request))
        self._size += 1

    def head(self) -> Request | None:
        while self._heap and self._heap[0][-1].state is not State.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][-1] if self._heap else None

    def pop(self) -> Request:
        """Takes the head, which the caller has just looked at."""
        self._size -= 1
        return heapq.heappop(self._heap)[-1]

    def drop(self, request: Request) -> None:
        """Ends a waiting request. Its entry stays until it reaches the head or dropped ones are the majority: under
        priorities a client could otherwise fill the memory with requests that it has aborted."""
        request.state = State.FINISHED
        self._size -= 1
        if len(self._heap) > 2 * self._size + 64:
            self._heap = [entry for entry in self._heap if entry[-1].state is State.WAITING]
            heapq.heapify(self._heap)
