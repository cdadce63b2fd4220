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

from typing import Any

import numpy as np
import numpy.typing as npt

from albireo.config import SamplingMode, SchedulerConfig
from albireo.coordinator.admission import extras_bound, write_admission
from albireo.coordinator.block_pool import BlockPool, Blocks
from albireo.coordinator.preemption import Preemptor
from albireo.coordinator.prefix_cache import PrefixCache
from albireo.coordinator.request import NO_SCORES, Request, State, WaitingQueue
from albireo.coordinator.results import NO_LOGPROBS, ConfirmedRows, Results, SchedulerCounters
from albireo.coordinator.slot_table import SlotTable
from albireo.coordinator.step_log import Preemption
from albireo.coordinator.swap import SwapSpace
from albireo.coordinator.trial import Trial
from albireo.limits import MAX_LOCAL_TOP_K
from albireo.messages import Admitted
from albireo.shm.plan_ring import PlanSlot, max_appends, max_extras

Slots = npt.NDArray[np.int32]


class Scheduler:
    """Owns every request, slot and block of one engine. Pure state: no clock, no socket, no shared memory of its
    own, so that tests can drive it step by step."""

    def __init__(
        self,
        config: SchedulerConfig,
        num_blocks: int,
        eos_token_ids: tuple[int, ...],
        hash_key: bytes,
        num_workers: int = 1,
        sampling_mode: SamplingMode = "local",
    ) -> None:
        self.config = config
        self.pool = BlockPool(num_blocks)
        self.slots = SlotTable(config)
        self.swap = SwapSpace(config)
        self.waiting = WaitingQueue(config.policy == "priority", config.max_num_batched_tokens, self.swap.drop)
        self.counters = SchedulerCounters()
        self.admitted: dict[int, list[Admitted]] = {}
        """First admissions by frontend, since the caller last took them."""
        self._prefixes = PrefixCache(config, hash_key, self.slots, self.pool)
        self._eos_token_ids = eos_token_ids
        self._num_workers = num_workers
        self._sampling_mode = sampling_mode
        self._watermark = max(1, num_blocks // 100)
        """Blocks kept free at admissions while others run: their next blocks should not preempt the newcomer."""
        self._rows = np.empty(0, np.int32)
        """Slots of the decode rows, in batch order, as of the last plan."""
        self._rows_changed = True
        """Since the last plan; at first, what the devices remember is another coordinator's."""
        self._going_back: Slots = np.empty(0, np.int32)
        """Slots of rows that waited for a grammar's mask when no step of theirs was left to be planned."""
        self.grammar_changes: list[tuple[Request, int, int]] = []
        """Requests with a grammar that entered a slot, or left one (-1), and its generation; the caller takes them."""
        self._prefilling: list[Request] = []
        self._trial = Trial(self.slots)
        self._results = Results(self.slots, self.waiting, self.counters, self._leave, self._go_back)
        self._preemptor = Preemptor(
            self.slots, self.swap, self.waiting, self._results, self.counters, self._leave, self._unbind,
            config.block_size,
        )  # fmt: skip

    # -- requests in and out ------------------------------------------------------------------------------------

    @property
    def num_in_flight(self) -> int:
        """Planned steps that are not confirmed."""
        return len(self._results)

    @property
    def has_work(self) -> bool:
        return bool(self.slots.num_running or len(self.waiting) or len(self._results))

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
        if request.state is State.NEW:
            request.state = State.FINISHED
            return  # the engine never had it
        if request.state is State.WAITING:
            self.waiting.drop(request)
            self._results.forget(request)
        elif request.state is State.RUNNING:
            self._leave(request)
            request.state = State.FINISHED
        else:
            return
        self.counters.finished_abort += 1

    def outputs(self, request: Request) -> npt.NDArray[np.int32]:
        """Its confirmed output tokens."""
        if request.state is State.RUNNING:
            return self.slots.token_ids[request.slot, request.num_prompt_tokens : self.slots.num_tokens[request.slot]]
        return request.tokens[request.num_prompt_tokens :]

    def bind_to(self, request: Request) -> tuple[int, int, int] | None:
        """Slot, generation and number of confirmed tokens of a request that runs; None for others."""
        if request.state is not State.RUNNING:
            return None
        slot = request.slot
        return slot, int(self.slots.generation[slot]), int(self.slots.num_tokens[slot])

    # -- devices that die ---------------------------------------------------------------------------------------

    def lose_devices(self) -> list[Request]:
        """All that the devices held is gone, and the steps in flight with it: every running request goes back to the
        queue, to be computed again from its tokens. Returns those of which a step may have been in flight."""
        had_steps = self.num_in_flight > 0
        preempted = self._results.lose()
        running = self._preemptor.requeue_all()
        self._rows = self._going_back = np.empty(0, np.int32)
        self._rows_changed = True
        self._prefilling.clear()
        self._trial.stop()
        self.swap.lose_all()
        return running + preempted if had_steps else []

    def gain_devices(self, num_blocks: int) -> None:
        """Others are there, with so many empty blocks."""
        self.pool = self._prefixes.pool = BlockPool(num_blocks)
        self._watermark = max(1, num_blocks // 100)

    # -- planning -----------------------------------------------------------------------------------------------

    def plan(self, plan: PlanSlot) -> bool:
        """Fills `plan` with the next step. False when there is nothing to do, or nothing that can be done before
        a step in flight is confirmed; the slot is then as good as untouched."""
        if self.num_in_flight and len(self.waiting) and self._trial.is_on:
            return False  # whoever is next would only wait for one more step
        if self._going_back.size:
            self._take_back()
        in_need = self._make_room_for_rows()
        if in_need is None:
            return False
        header = plan.header
        for count in ("num_admissions", "num_appends", "num_chunks", "num_chunk_tokens", "num_extras"):
            header[count] = 0
        rows = self._rows
        header["num_rows"] = rows.size
        header["rows_changed"] = self._rows_changed
        if self._rows_changed:
            plan.rows[: rows.size] = rows
        self._append_row_blocks(plan, in_need)
        samplers = self._plan_prompts(plan, self.config.max_num_batched_tokens - rows.size)
        num_tokens = rows.size + int(header["num_chunk_tokens"][0])
        if not num_tokens:
            return False
        self._rows_changed = False
        self.swap.write(plan)
        slots = np.concatenate([rows, np.array(samplers, np.int32)]) if samplers else rows
        header["sampling_slice"] = self._sampling_slice(slots)
        self._results.expect(slots)
        self.slots.num_computed_tokens[rows] += 1
        self._next_rows(slots)
        return True

    def _sampling_slice(self, sampled: Slots) -> int:
        """Rows per rank on the sequence-parallel path; only what is planned counts, not what is still alive."""
        if self._num_workers == 1 or self._sampling_mode == "gathered":
            return 0
        if self._sampling_mode == "sequence-parallel":
            num_rows = sampled.size
        else:
            num_rows = int(np.count_nonzero(self.slots.top_k[sampled] > MAX_LOCAL_TOP_K))
        return -(-num_rows // self._num_workers)

    def _next_rows(self, sampled: Slots) -> None:
        """The rows that go on: those that sampled, less those whose last token is now planned."""
        # take is two to three times as fast as an index array, and this is all that a decode step does
        planned_tokens = self.slots.num_computed_tokens.take(sampled) + 1
        goes_on = planned_tokens < self.slots.max_total_tokens.take(sampled)
        if sampled.size != self._rows.size or not goes_on.all():
            self._rows = sampled[goes_on]
            self._rows_changed = True

    def _go_back(self, slots: Slots) -> None:
        """These rows waited for a grammar's mask: what was planned last of each is to be done once more."""
        self.slots.num_computed_tokens[slots] -= 1
        known = np.concatenate([self._rows, self._going_back])
        self._going_back = np.concatenate([self._going_back, np.setdiff1d(slots, known)])

    def _take_back(self) -> None:
        """As many as the batch has room for; a request that ended its planning may have made place for another."""
        room = self.config.max_num_seqs - self._rows.size - len(self._prefilling)
        if room > 0:
            self._rows = np.concatenate([self._rows, self._going_back[:room]])
            self._rows_changed = True
            self._going_back = self._going_back[room:]

    def _rows_in_need(self) -> Slots:
        """Rows whose next token lies in a block that they don't have."""
        index = self.slots.num_computed_tokens.take(self._rows) // self.config.block_size
        return self._rows[index >= self.slots.num_blocks.take(self._rows)]

    def _make_room_for_rows(self) -> Slots | None:
        """Preempts until every row can have its next block; returns the rows that need one. None: waiting for a step
        in flight frees blocks."""
        while (in_need := self._rows_in_need()).size > self.pool.num_free:
            ending = self.slots.num_running - self._rows.size - len(self._prefilling) - self._going_back.size
            if ending:
                return None
            self._preemptor.preempt_last(self.pool, in_need.size)
        return in_need

    def _append_row_blocks(self, plan: PlanSlot, slots: Slots) -> None:
        """Gives each of `slots` its next block, which is free."""
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
        requests that arrive together share what they have in common.

        A prompt that more than fills the step comes last, and leaves half of the budget to others that can use it,
        but for another of its kind: those behind it wait for a step, and not for all of it."""
        samplers: list[int] = []
        long = [request for request in self._prefilling if self._num_left(request) > budget]
        spare = budget // 2 if long else budget
        for request in self._prefilling:
            if request not in long:
                spare -= self._plan_chunk(plan, request, spare, samplers)
        while spare and self._start_next(plan, without_long=bool(long)):
            spare -= self._plan_chunk(plan, self._prefilling[-1], spare, samplers)
        for request in long:
            self._plan_chunk(plan, request, budget - int(plan.header["num_chunk_tokens"][0]), samplers)
        if samplers:
            self._prefilling = [request for request in self._prefilling if self._num_left(request)]
        return samplers

    def _num_left(self, request: Request) -> int:
        """Tokens of its prompt that are not planned yet."""
        return request.tokens.size - int(self.slots.num_computed_tokens[request.slot])

    def _plan_chunk(self, plan: PlanSlot, request: Request, budget: int, samplers: list[int]) -> int:
        """Plans as much of the request's prompt as the budget allows; returns the tokens it takes."""
        slot, start = request.slot, int(self.slots.num_computed_tokens[request.slot])
        num_tokens = min(budget, self._num_left(request))
        if not num_tokens:
            return 0
        header, end = plan.header, start + num_tokens
        count, filled = int(header["num_chunks"][0]), int(header["num_chunk_tokens"][0])
        plan.chunk_tokens[filled : filled + num_tokens] = request.tokens[start:end]
        next_token = request.tokens[end] if end < request.num_prompt_tokens else -1
        plan.chunks[count] = (slot, start, num_tokens, end == request.tokens.size, request.score_from, next_token)
        header["num_chunks"], header["num_chunk_tokens"] = count + 1, filled + num_tokens
        self.slots.num_computed_tokens[slot] = end
        self._prefixes.register(request, start // self.config.block_size, end // self.config.block_size)
        if end == request.tokens.size:
            samplers.append(slot)
        return num_tokens

    def _start_next(self, plan: PlanSlot, without_long: bool) -> bool:
        """Admits the head of the queue if a slot, its blocks and the plan have room."""
        request = self.waiting.head(without_long)
        if request is None or request.num_in_flight or not self.slots.num_free or self._trial.keeps_out(request):
            return False
        if self._rows.size + len(self._prefilling) + self._going_back.size >= self.config.max_num_seqs:
            return False
        cached = self._prefixes.find(request)
        num_new = -(-request.tokens.size // self.config.block_size) - len(cached)
        reserve = self._watermark if self.slots.num_running else 0
        if num_new + self.pool.count_free(cached) + reserve > self.pool.num_free:
            return False
        if not self._has_room(plan, request, cached, num_new):
            return False
        self._start(plan, self.waiting.pop(request), cached, num_new)
        return True

    def _has_room(self, plan: PlanSlot, request: Request, cached: list[int], num_new: int) -> bool:
        """Whether all that admits the request fits into the plan."""
        return (
            int(plan.header["num_appends"][0]) + len(cached) + num_new <= max_appends(self.config)
            and int(plan.header["num_extras"][0]) + extras_bound(request) <= max_extras(self.config)
            and self.swap.can_restore(request, len(cached))
        )

    def _start(self, plan: PlanSlot, request: Request, cached: list[int], num_new: int) -> None:
        self.pool.share(cached)
        blocks = np.concatenate([np.array(cached, np.int32), self.pool.allocate(num_new)])
        num_present = len(cached) + self.swap.restore(request, len(cached), blocks)
        slot = self.slots.take(request, blocks, num_present * self.config.block_size)
        self._prefixes.register(request, len(cached), num_present)
        self._append(plan, slot, np.arange(blocks.size, dtype=np.int32), blocks)
        write_admission(plan, request, int(self.slots.generation[slot]), self._eos_token_ids)
        request.score_from = request.num_scored + 1 if request.wants_scores else NO_SCORES
        request.state = State.RUNNING
        request.deadline_ns = 0
        request.num_admissions += 1
        self._trial.begin(request)
        self._prefilling.append(request)
        if request.has_grammar:
            self.grammar_changes.append((request, slot, int(self.slots.generation[slot])))
        if request.num_admissions == 1:
            num_cached_tokens = len(cached) * self.config.block_size
            self.admitted.setdefault(request.frontend, []).append(Admitted(request.request_id, num_cached_tokens))
            self.counters.prompt_tokens += request.tokens.size
            self.counters.prefix_cache_queries += request.tokens.size
            self.counters.prefix_cache_hits += num_cached_tokens

    # -- leaving ------------------------------------------------------------------------------------------------

    def _leave(self, request: Request) -> None:
        """Takes the request off its slot and frees its blocks, its output's full blocks findable."""
        slot = request.slot
        self._prefixes.register_output(request)
        if request in self._prefilling:
            self._prefilling.remove(request)
        elif slot in self._rows:
            self._rows = self._rows[self._rows != slot]
            self._rows_changed = True
        elif self._going_back.size:
            self._going_back = self._going_back[self._going_back != slot]
        self.pool.release(self.slots.give_back(slot))

    def _unbind(self, request: Request) -> None:
        """It goes back to the queue: masks of its grammar belong nowhere."""
        if request.has_grammar:
            self.grammar_changes.append((request, -1, 0))

    def take_preemptions(self) -> list[Preemption]:
        """Since the last call."""
        return self._preemptor.take()

    # -- results ------------------------------------------------------------------------------------------------

    def confirm(self, rows: npt.NDArray[Any], logprobs: npt.NDArray[Any] = NO_LOGPROBS.records) -> ConfirmedRows:
        """Takes the oldest step's results: TOKEN_ROW[n_rows] in the plan's order, LOGPROB[n]."""
        return self._results.confirm(rows, logprobs)

    def take_constrained(self) -> list[tuple[Request, int]]:
        """The tokens that the last confirmed steps gave to requests with a grammar, without those that end one."""
        taken, self._results.constrained = self._results.constrained, []
        return taken
