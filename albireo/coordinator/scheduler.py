"""Continuous batching: what each step computes, planned ahead of the tokens that it depends on.

`plan` writes one step into a plan slot: decodes first, then chunks of admitted prompts, then new prompts, under the
token budget. `confirm` takes a step's sampled tokens. Between the two a step is in flight; the rules that make this
safe (design.md, Run-ahead):

- Membership, positions and blocks never depend on token values, so they are known ahead. A sequence that turns out
  to have ended is dead on the device (`alive`) for the steps that were already planned.
- Results carry (slot, generation). Those of a slot that has changed hands are dropped, unless they belong to a
  request that was preempted with tokens in flight: these are still delivered, and it waits for them.
- A freed block may be given to a later plan at once: the device runs plans in order.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from albireo.config import SchedulerConfig
from albireo.coordinator.block_pool import BlockPool, Blocks
from albireo.coordinator.prefix_cache import BlockHasher
from albireo.coordinator.request import Request, State, WaitingQueue
from albireo.coordinator.slot_table import SlotTable
from albireo.messages import Admitted, Finish
from albireo.shm.plan_ring import PlanSlot, max_appends

Slots = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What is remembered of a step in flight: its sampling rows, decodes first."""

    slots: Slots
    generations: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class ConfirmedRows:
    """Parallel arrays [n_rows]: tokens to deliver, each to request_ids[i] of frontends[i]."""

    frontends: npt.NDArray[np.int32]
    request_ids: npt.NDArray[np.uint64]
    tokens: npt.NDArray[np.int32]
    finish: npt.NDArray[np.uint8]


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


class Scheduler:
    """Owns every request, slot and block of one engine. Pure state: no clock, no socket, no shared memory of its
    own, so that tests can drive it step by step."""

    def __init__(
        self, config: SchedulerConfig, num_blocks: int, eos_token_ids: tuple[int, ...], hash_key: bytes
    ) -> None:
        self.config = config
        self.pool = BlockPool(num_blocks)
        self.slots = SlotTable(config)
        self.waiting = WaitingQueue(by_priority=config.policy == "priority")
        self.counters = SchedulerCounters()
        self.admitted: dict[int, list[Admitted]] = {}
        """First admissions by frontend, since the caller last took them."""
        self._hasher = BlockHasher(hash_key, config.block_size)
        self._eos_token_ids = eos_token_ids
        self._watermark = max(1, num_blocks // 100)
        """Blocks kept free at admissions while others run: their next blocks should not preempt the newcomer."""
        self._rows = np.empty(0, np.int32)
        """Slots of the decode rows, in batch order, as of the last plan."""
        self._rows_changed = False
        self._prefilling: list[Request] = []
        self._in_flight: deque[PlannedStep] = deque()
        self._preempted_in_flight: dict[tuple[int, int], Request] = {}

    # -- requests in and out ------------------------------------------------------------------------------------

    @property
    def num_in_flight(self) -> int:
        """Planned steps that are not confirmed."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        return bool(self.slots.num_running or len(self.waiting) or self._in_flight)

    def capacity_error(self, request: Request) -> str | None:
        """Why this request could never run, or None."""
        needed = -(-request.max_total_tokens // self.config.block_size)
        if needed <= self.pool.num_blocks:
            return None
        capacity = self.pool.num_blocks * self.config.block_size
        return f"prompt and max_tokens need {request.max_total_tokens} tokens of KV cache; the engine has {capacity}"

    def submit(self, request: Request) -> None:
        self.waiting.push(request)

    def abort(self, request: Request) -> None:
        """Ends a request; its blocks are free for the next plan, its results in flight are dropped."""
        if request.state is State.WAITING:
            self.waiting.drop(request)
            self._forget_in_flight(request)
        elif request.state is State.RUNNING:
            self._leave(request)
            request.state = State.FINISHED
        else:
            return
        self.counters.finished_abort += 1

    # -- planning -----------------------------------------------------------------------------------------------

    def plan(self, plan: PlanSlot) -> bool:
        """Fills `plan` with the next step. False when there is nothing to do, or nothing that can be done before
        a step in flight is confirmed; the slot is then as good as untouched."""
        if not self._make_room_for_rows():
            return False
        header = plan.header
        header["num_admissions"] = header["num_appends"] = header["num_chunks"] = header["num_chunk_tokens"] = 0
        rows = self._rows
        header["num_rows"] = rows.size
        header["rows_changed"] = self._rows_changed
        if self._rows_changed:
            plan.rows[: rows.size] = rows
        self._append_row_blocks(plan)
        samplers = self._plan_prompts(plan, self.config.max_num_batched_tokens - rows.size)
        num_tokens = rows.size + int(header["num_chunk_tokens"][0])
        if not num_tokens:
            return False
        self._rows_changed = False
        slots = np.concatenate([rows, np.array(samplers, np.int32)]) if samplers else rows
        self._in_flight.append(PlannedStep(slots, self.slots.generation[slots]))
        self.slots.num_computed_tokens[rows] += 1
        self._next_rows(slots)
        return True

    def _next_rows(self, sampled: Slots) -> None:
        """The rows that go on: those that sampled, less those whose last token is now planned."""
        planned_tokens = self.slots.num_computed_tokens[sampled] + 1
        goes_on = planned_tokens < self.slots.max_total_tokens[sampled]
        if sampled.size != self._rows.size or not goes_on.all():
            self._rows = sampled[goes_on]
            self._rows_changed = True

    def _rows_in_need(self) -> Slots:
        """Rows whose next token lies in a block that they don't have."""
        index = self.slots.num_computed_tokens[self._rows] // self.config.block_size
        return self._rows[index >= self.slots.num_blocks[self._rows]]

    def _make_room_for_rows(self) -> bool:
        """Preempts until every row can have its next block. False: waiting for a step in flight frees blocks."""
        while self._rows_in_need().size > self.pool.num_free:
            ending = self.slots.num_running - self._rows.size - len(self._prefilling)
            if ending:
                return False
            self._preempt(max(self.slots.running(), key=self.waiting.order))
        return True

    def _append_row_blocks(self, plan: PlanSlot) -> None:
        slots = self._rows_in_need()
        if slots.size:
            index = self.slots.num_blocks[slots]
            self._append(plan, slots, index, self.pool.allocate(slots.size))
            self.slots.num_blocks[slots] = index + 1

    def _append(self, plan: PlanSlot, slots: Slots | int, index: Blocks, blocks: Blocks) -> None:
        """Enters blocks into the block tables here and in the plan."""
        self.slots.block_table[slots, index] = blocks
        start = int(plan.header["num_appends"][0])
        appends = plan.appends[start : start + blocks.size]
        appends["slot"], appends["index"], appends["block"] = slots, index, blocks
        plan.header["num_appends"] = start + blocks.size

    # -- prompts ------------------------------------------------------------------------------------------------

    def _plan_prompts(self, plan: PlanSlot, budget: int) -> list[int]:
        """Gives the budget to prompts under way, then to waiting ones; returns the slots whose prompts end in this
        step and so sample. A prompt's chunk is planned before the next one is looked up in the prefix cache:
        requests that arrive together share what they have in common."""
        samplers: list[int] = []
        for request in self._prefilling:
            budget -= self._plan_chunk(plan, request, budget, samplers)
        while budget and self._start_next(plan):
            budget -= self._plan_chunk(plan, self._prefilling[-1], budget, samplers)
        del self._prefilling[: len(samplers)]
        return samplers

    def _plan_chunk(self, plan: PlanSlot, request: Request, budget: int, samplers: list[int]) -> int:
        """Plans as much of the request's prompt as the budget allows; returns the tokens it takes."""
        slot, start = request.slot, int(self.slots.num_computed_tokens[request.slot])
        num_tokens = min(budget, request.tokens.size - start)
        if not num_tokens:
            return 0
        header, end = plan.header, start + num_tokens
        count, filled = int(header["num_chunks"][0]), int(header["num_chunk_tokens"][0])
        plan.chunk_tokens[filled : filled + num_tokens] = request.tokens[start:end]
        plan.chunks[count] = (slot, start, num_tokens, end == request.tokens.size)
        header["num_chunks"], header["num_chunk_tokens"] = count + 1, filled + num_tokens
        self.slots.num_computed_tokens[slot] = end
        self._register(request, start // self.config.block_size, end // self.config.block_size)
        if end == request.tokens.size:
            samplers.append(slot)
        return num_tokens

    def _start_next(self, plan: PlanSlot) -> bool:
        """Admits the head of the queue if a slot, its blocks and the plan have room."""
        request = self.waiting.head()
        if request is None or request.num_in_flight or not self.slots.num_free:
            return False
        if self._rows.size + len(self._prefilling) >= self.config.max_num_seqs:
            return False
        cached = self._cached_blocks(request)
        num_new = -(-request.tokens.size // self.config.block_size) - len(cached)
        reserve = self._watermark if self.slots.num_running else 0
        if num_new + self.pool.count_free(cached) + reserve > self.pool.num_free:
            return False
        if int(plan.header["num_appends"][0]) + len(cached) + num_new > max_appends(self.config):
            return False
        self._start(plan, self.waiting.pop(), cached, num_new)
        return True

    def _cached_blocks(self, request: Request) -> list[int]:
        """Blocks that already hold the head of its tokens; at least one token is left to compute."""
        if not self.config.enable_prefix_caching:
            return []
        if not request.hashes:
            request.hashes = self._hasher.extend(self._hasher.root(request.cache_salt), request.tokens)
        return self.pool.lookup(request.hashes[: (request.tokens.size - 1) // self.config.block_size])

    def _start(self, plan: PlanSlot, request: Request, cached: list[int], num_new: int) -> None:
        self.pool.share(cached)
        blocks = np.concatenate([np.array(cached, np.int32), self.pool.allocate(num_new)])
        num_cached_tokens = len(cached) * self.config.block_size
        slot = self.slots.take(request, blocks, num_cached_tokens)
        self._append(plan, slot, np.arange(blocks.size, dtype=np.int32), blocks)
        self._write_admission(plan, request)
        request.state = State.RUNNING
        request.num_admissions += 1
        self._prefilling.append(request)
        if request.num_admissions == 1:
            self.admitted.setdefault(request.frontend, []).append(Admitted(request.request_id, num_cached_tokens))
            self.counters.prompt_tokens += request.tokens.size
            self.counters.prefix_cache_queries += request.tokens.size
            self.counters.prefix_cache_hits += num_cached_tokens

    def _write_admission(self, plan: PlanSlot, request: Request) -> None:
        sampling = request.sampling
        eos = () if sampling.ignore_eos else self._eos_token_ids
        stop_ids = eos + sampling.stop_token_ids
        index = int(plan.header["num_admissions"][0])
        entry = plan.admissions[index : index + 1]
        entry["slot"], entry["generation"] = request.slot, self.slots.generation[request.slot]
        entry["seed"], entry["temperature"] = sampling.seed, sampling.temperature
        entry["top_p"], entry["min_p"], entry["top_k"] = sampling.top_p, sampling.min_p, sampling.top_k
        entry["num_eos_ids"], entry["num_stop_ids"] = len(eos), len(sampling.stop_token_ids)
        entry["stop_ids"][0, : len(stop_ids)] = stop_ids
        plan.header["num_admissions"] = index + 1

    def _register(self, request: Request, first: int, end: int) -> None:
        """Makes blocks [first, end) of a request findable by their content."""
        if self.config.enable_prefix_caching:
            for index in range(first, end):
                self.pool.register(int(self.slots.block_table[request.slot, index]), request.hashes[index])

    # -- leaving ------------------------------------------------------------------------------------------------

    def _leave(self, request: Request) -> None:
        """Takes the request off its slot and frees its blocks, its output's full blocks findable."""
        slot = request.slot
        self._register_output(request)
        if request in self._prefilling:
            self._prefilling.remove(request)
        elif slot in self._rows:
            self._rows = self._rows[self._rows != slot]
            self._rows_changed = True
        self.pool.release(self.slots.give_back(slot))

    def _register_output(self, request: Request) -> None:
        """Output blocks are hashed when their request leaves, not as they fill: nothing is added to a decode step,
        and who comes back with this text as the head of a prompt comes after its end."""
        if not self.config.enable_prefix_caching:
            return
        slot, block_size = request.slot, self.config.block_size
        num_written = min(int(self.slots.num_computed_tokens[slot]), int(self.slots.num_tokens[slot]) - 1)
        first, end = len(request.hashes), num_written // block_size
        if end > first:
            parent = request.hashes[-1] if request.hashes else self._hasher.root(request.cache_salt)
            tokens = self.slots.token_ids[slot, first * block_size : end * block_size]
            request.hashes = request.hashes + self._hasher.extend(parent, tokens)
            self._register(request, first, end)

    def _preempt(self, request: Request) -> None:
        """Back to the queue, to be computed again from its tokens. Those in flight are still delivered."""
        slot = request.slot
        num_tokens = int(self.slots.num_tokens[slot])
        request.tokens = self.slots.token_ids[slot, :num_tokens].copy()
        request.num_in_flight = max(0, int(self.slots.num_computed_tokens[slot]) + 1 - num_tokens)
        if request.num_in_flight:
            self._preempted_in_flight[slot, int(self.slots.generation[slot])] = request
        self._leave(request)
        request.hashes = []
        self.waiting.push(request)
        self.counters.num_preemptions += 1

    # -- results ------------------------------------------------------------------------------------------------

    def confirm(self, rows: npt.NDArray[Any]) -> ConfirmedRows:
        """Takes the oldest step's results (TOKEN_ROW[n_rows], in the plan's order)."""
        step = self._in_flight.popleft()
        slots = step.slots
        assert np.array_equal(rows["slot"], slots), "a worker's rows are not those of the plan"
        assert np.array_equal(rows["generation"], step.generations), "a worker's rows are of other requests"
        is_current = self.slots.generation[slots] == step.generations
        live = is_current & (rows["token"] >= 0)
        output = self._confirm_current(slots[live], rows["token"][live], rows["finish"][live])
        if self._preempted_in_flight and not is_current.all():
            stale = np.flatnonzero(~is_current)
            return self._confirm_preempted(output, rows[stale], step.generations[stale])
        return output

    def _confirm_current(
        self, slots: Slots, tokens: npt.NDArray[np.int32], device_finish: npt.NDArray[np.int32]
    ) -> ConfirmedRows:
        table = self.slots
        num_tokens = table.num_tokens[slots]
        table.token_ids[slots, num_tokens] = tokens
        table.num_tokens[slots] = num_tokens + 1
        at_limit = num_tokens + 1 >= table.max_total_tokens[slots]
        finish = np.where((device_finish == Finish.NONE) & at_limit, int(Finish.LENGTH), device_finish).astype(np.uint8)
        output = ConfirmedRows(table.frontend[slots], table.request_id[slots], tokens, finish)
        self.counters.generation_tokens += slots.size
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
            request = self._preempted_in_flight.get((int(row["slot"]), generation))
            if request is None:
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
        )

    def _deliver_late(self, request: Request, token: int, finish: int) -> int:
        """One token of a preempted request; returns its Finish."""
        request.num_in_flight -= 1
        request.tokens = np.append(request.tokens, np.int32(token))
        self.counters.generation_tokens += 1
        if not finish and request.tokens.size >= request.max_total_tokens:
            finish = int(Finish.LENGTH)
        if finish:
            self.waiting.drop(request)
            self._count_finish(request, finish)
        if finish or not request.num_in_flight:
            self._forget_in_flight(request)
        return finish

    def _forget_in_flight(self, request: Request) -> None:
        in_flight = self._preempted_in_flight
        self._preempted_in_flight = {key: other for key, other in in_flight.items() if other is not request}

    def _count_finish(self, request: Request, finish: int) -> None:
        request.state = State.FINISHED
        if finish == Finish.LENGTH:
            self.counters.finished_length += 1
        else:
            self.counters.finished_stop += 1
