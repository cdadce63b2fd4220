"""Steps in flight, and what becomes of their results: the confirming half of the scheduler.

Results carry (slot, generation). Those of a slot that has changed hands are dropped, unless they belong to a request
that was preempted with tokens in flight: these are still delivered, and it waits for them.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from albireo.coordinator.request import Request, State, WaitingQueue
from albireo.coordinator.slot_table import SlotTable
from albireo.messages import WAITED, Finish
from albireo.shm import layout

Slots = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What is remembered of a step in flight: its sampling rows, decodes first."""

    slots: Slots
    generations: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class ConfirmedLogprobs:
    """Log-probabilities to deliver: parallel arrays [n]."""

    frontends: npt.NDArray[np.int32]
    request_ids: npt.NDArray[np.uint64]
    records: npt.NDArray[Any]
    """layout.LOGPROB"""


NO_LOGPROBS = ConfirmedLogprobs(np.empty(0, np.int32), np.empty(0, np.uint64), np.empty(0, layout.LOGPROB))


@dataclass(frozen=True, slots=True)
class ConfirmedRows:
    """Parallel arrays [n_rows]: tokens to deliver, each to request_ids[i] of frontends[i]."""

    frontends: npt.NDArray[np.int32]
    request_ids: npt.NDArray[np.uint64]
    tokens: npt.NDArray[np.int32]
    finish: npt.NDArray[np.uint8]
    logprobs: ConfirmedLogprobs = NO_LOGPROBS


@dataclass(slots=True)
class SchedulerCounters:
    """Totals since start, in tokens unless named otherwise."""

    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    finished_stop: int = 0
    finished_length: int = 0
    finished_abort: int = 0


class Results:
    """Owns the steps in flight. `leave` takes a request that has ended off its slot."""

    def __init__(
        self,
        slots: SlotTable,
        waiting: WaitingQueue,
        counters: SchedulerCounters,
        leave: Callable[[Request], None],
        go_back: Callable[[Slots], None],
    ) -> None:
        """`go_back` takes the slots of rows that waited for their grammar's mask: their step is to be planned again."""
        self._slots = slots
        self._waiting = waiting
        self._counters = counters
        self._leave = leave
        self._go_back = go_back
        self.constrained: list[tuple[Request, int]] = []
        """Tokens of requests with a grammar, without those that end one, since the caller last took them."""
        self._in_flight: deque[PlannedStep] = deque()
        self._preempted: dict[tuple[int, int], Request] = {}
        """By the (slot, generation) that they had: requests preempted with tokens in flight."""

    def __len__(self) -> int:
        return len(self._in_flight)

    def expect(self, sampled: Slots) -> None:
        """A step was planned; these slots sample, in this order."""
        self._in_flight.append(PlannedStep(sampled, self._slots.generation[sampled]))

    def expect_late(self, request: Request) -> None:
        """The request, still on its slot, is about to be preempted; `num_in_flight` tokens of it are on their way."""
        self._preempted[request.slot, int(self._slots.generation[request.slot])] = request

    def forget(self, request: Request) -> None:
        """Nothing of a preempted request is expected any more."""
        self._preempted = {key: other for key, other in self._preempted.items() if other is not request}

    def lose(self) -> list[Request]:
        """No step in flight will be confirmed. Returns the preempted requests that had tokens in them."""
        self._in_flight.clear()
        preempted = list(self._preempted.values())
        for request in preempted:
            request.num_in_flight = 0
        self._preempted.clear()
        return preempted

    def confirm(self, rows: npt.NDArray[Any], records: npt.NDArray[Any]) -> ConfirmedRows:
        """Takes the oldest step's results: TOKEN_ROW[n_rows] in the plan's order, LOGPROB[n]."""
        step = self._in_flight.popleft()
        slots = step.slots
        assert np.array_equal(rows["slot"], slots), "a worker's rows are not those of the plan"
        assert np.array_equal(rows["generation"], step.generations), "a worker's rows are of other requests"
        logprobs = self._confirm_logprobs(records) if records.size else NO_LOGPROBS
        is_current = self._slots.generation.take(slots) == step.generations
        tokens, finish = rows["token"], rows["finish"]
        live = is_current & (tokens >= 0)
        if live.all():
            output = self._confirm_current(slots, tokens.copy(), finish, logprobs)
        else:
            waited = is_current & (tokens == WAITED)
            if waited.any():
                self._go_back(slots[waited])
            output = self._confirm_current(slots[live], tokens[live], finish[live], logprobs)
        if self._preempted and not is_current.all():
            stale = np.flatnonzero(~is_current)
            return self._confirm_preempted(output, rows[stale], step.generations[stale])
        return output

    def _confirm_current(
        self,
        slots: Slots,
        tokens: npt.NDArray[np.int32],
        device_finish: npt.NDArray[np.int32],
        logprobs: ConfirmedLogprobs,
    ) -> ConfirmedRows:
        table = self._slots
        num_tokens = table.num_tokens.take(slots)
        table.token_ids[slots, num_tokens] = tokens
        num_tokens += 1
        table.num_tokens[slots] = num_tokens
        at_limit = num_tokens >= table.max_total_tokens.take(slots)
        finish = device_finish.astype(np.uint8)
        finish[at_limit & (finish == Finish.NONE)] = Finish.LENGTH
        output = ConfirmedRows(table.frontend.take(slots), table.request_id.take(slots), tokens, finish, logprobs)
        self._counters.generation_tokens += slots.size
        if table.num_with_grammar:
            goes_on = table.has_grammar.take(slots) & (finish == Finish.NONE)
            for index in np.flatnonzero(goes_on).tolist():
                self._note_constrained(table.requests[slots[index]], int(tokens[index]))
        for index in np.flatnonzero(finish).tolist():
            request = table.requests[slots[index]]
            assert request is not None, "a current row has no request"
            self._leave(request)
            self._count_finish(request, int(finish[index]))
        return output

    def _confirm_preempted(
        self, output: ConfirmedRows, rows: npt.NDArray[Any], generations: npt.NDArray[np.uint32]
    ) -> ConfirmedRows:
        """Adds the rows of requests that were preempted with this step in flight; other old rows are dropped."""
        frontends, request_ids, tokens, finishes = [], [], [], []
        for row, generation in zip(rows, generations.tolist(), strict=True):
            request = self._preempted.get((int(row["slot"]), generation))
            if request is None:
                continue
            if row["token"] == WAITED:
                self._forget_late_token(request)
                continue
            finish = self._deliver_late(request, int(row["token"]), int(row["finish"]))
            frontends.append(request.frontend)
            request_ids.append(request.request_id)
            tokens.append(int(row["token"]))
            finishes.append(finish)
        return ConfirmedRows(
            np.append(output.frontends, np.array(frontends, np.int32)),
            np.append(output.request_ids, np.array(request_ids, np.uint64)),
            np.append(output.tokens, np.array(tokens, np.int32)),
            np.append(output.finish, np.array(finishes, np.uint8)),
            output.logprobs,
        )

    def _deliver_late(self, request: Request, token: int, finish: int) -> int:
        """One token of a preempted request; returns its Finish."""
        request.tokens = np.append(request.tokens, np.int32(token))
        self._counters.generation_tokens += 1
        if not finish and request.tokens.size >= request.max_total_tokens:
            finish = int(Finish.LENGTH)
        if finish:
            self._waiting.drop(request)
            self._count_finish(request, finish)
            self.forget(request)
        else:
            if request.has_grammar:
                self._note_constrained(request, token)
            self._forget_late_token(request)
        return finish

    def _forget_late_token(self, request: Request) -> None:
        """One step of a preempted request that was on its way is here."""
        request.num_in_flight -= 1
        if not request.num_in_flight:
            self.forget(request)

    def _note_constrained(self, request: Request | None, token: int) -> None:
        assert request is not None, "a current row has no request"
        self.constrained.append((request, token))

    def _confirm_logprobs(self, records: npt.NDArray[Any]) -> ConfirmedLogprobs:
        """The records that somebody waits for, with their receivers. One turn for each request that asked, and its
        step: prompt scores come in runs."""
        slots, generations = records["slot"], records["generation"]
        starts = np.flatnonzero(np.diff(slots, prepend=-1))
        kept = np.ones(records.size, np.bool_)
        frontends, request_ids = np.empty(records.size, np.int32), np.empty(records.size, np.uint64)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), records.size], strict=True):
            slot, generation = int(slots[start]), int(generations[start])
            is_current = int(self._slots.generation[slot]) == generation
            request = self._slots.requests[slot] if is_current else self._preempted.get((slot, generation))
            if request is None:
                kept[start:end] = False
                continue
            frontends[start:end], request_ids[start:end] = request.frontend, request.request_id
            if request.wants_scores:
                request.num_scored += int((records["position"][start:end] < request.num_prompt_tokens).sum())
        return ConfirmedLogprobs(frontends[kept], request_ids[kept], records[kept])

    def _count_finish(self, request: Request, finish: int) -> None:
        request.state = State.FINISHED
        if finish == Finish.LENGTH:
            self._counters.finished_length += 1
        else:
            self._counters.finished_stop += 1
