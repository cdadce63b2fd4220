"""A scheduler and a fake device joined by a real plan ring, driven by hand: what tests of the scheduler share."""

import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fake_device import FakeDevice, reference

from albireo.config import SchedulerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.results import ConfirmedLogprobs
from albireo.coordinator.scheduler import Scheduler
from albireo.messages import Finish, SamplingParams
from albireo.shm import segment
from albireo.shm.plan_ring import PlanRing, PlanSlot

EOS = (3, 4)


@dataclass
class Expected:
    request: Request
    tokens: list[int]
    finish: Finish
    received: list[int] = field(default_factory=list)
    finished: Finish = Finish.NONE
    aborted: bool = False
    scored: list[tuple[int, int]] = field(default_factory=list)
    """(position, token) of the logprobs that arrived."""
    matched: list[int] = field(default_factory=list)
    """What its grammar's matcher would have been told."""


class Engine:
    """One step of each part at a time: plan, execute, confirm."""

    def __init__(self, config: SchedulerConfig, num_blocks: int) -> None:
        self.config = config
        self.scheduler = Scheduler(config, num_blocks, EOS, hash_key=b"key")
        self.device = FakeDevice(config, num_blocks)
        self._num_blocks = num_blocks
        self.requests: dict[int, Expected] = {}
        self._prompts: dict[int, list[int]] = {}
        self._executed: deque[tuple[np.ndarray, np.ndarray]] = deque()
        ring = PlanRing(config, 1)
        fd = segment.create("plan", ring.geometry.size)
        ring.initialise(fd)
        self._writer, self._reader = ring.writer(fd), ring.reader(fd, 0)
        os.close(fd)

    def submit(
        self, prompt: list[int], max_tokens: int = 8, *, stop: tuple[int, ...] = (), ignore_eos: bool = False,
        priority: int = 0, salt: str = "", has_grammar: bool = False, sample_group: int = 0,
        frontend: int | None = None, **parameters: Any,
    ) -> Expected:  # fmt: skip
        """`parameters` of SamplingParams that the fake device does not obey, but what they ask for must arrive."""
        request_id = len(self.requests)
        sampling = SamplingParams(
            max_tokens=max_tokens, seed=request_id, stop_token_ids=stop, ignore_eos=ignore_eos, **parameters
        )
        max_total = min(len(prompt) + max_tokens, self.config.max_model_len)
        frontend = request_id % 2 if frontend is None else frontend
        request = Request(
            frontend=frontend, request_id=request_id, sampling=sampling, tokens=np.array(prompt, np.int32),
            max_total_tokens=max_total, priority=priority, cache_salt=salt,
            arrival=request_id, sample_group=sample_group, grammar_handle=has_grammar * (request_id + 1),
        )  # fmt: skip
        expected = Expected(request, *reference(prompt, request_id, max_total, () if ignore_eos else EOS, stop))
        self.requests[request_id] = expected
        self._prompts[request_id] = prompt
        self.scheduler.submit(request)
        return expected

    def abort(self, expected: Expected) -> None:
        self.scheduler.abort(expected.request)
        expected.aborted = True

    def lose_devices(self) -> list[Request]:
        """The workers die with what they have not published, and others come. Returns the suspects."""
        suspects = self.scheduler.lose_devices()
        for request in suspects:
            request.note_crash()
        self._executed.clear()
        while self._reader.poll() is not None:
            self._reader.consume()
        lateness, self.device = self.device.lateness, FakeDevice(self.config, self._num_blocks)
        self.device.lateness = lateness
        self.scheduler.gain_devices(self._num_blocks)
        return suspects

    def lose_coordinator(self) -> None:
        """Another takes its place: the workers do what is planned, and the frontends hand over what they hold."""
        while self.execute():
            pass
        self._executed.clear()
        self.scheduler = Scheduler(self.config, self._num_blocks, EOS, hash_key=b"another")
        for expected in self.requests.values():
            if not expected.finished and not expected.aborted:
                old, num_prompt = expected.request, expected.request.num_prompt_tokens
                expected.request = Request(
                    frontend=old.frontend, request_id=old.request_id, sampling=old.sampling,
                    tokens=np.array([*self._prompts[old.request_id], *expected.received], np.int32),
                    num_output_tokens=len(expected.received), max_total_tokens=old.max_total_tokens,
                    num_scored=sum(position < num_prompt for position, _ in expected.scored),
                    num_admissions=int(old.num_admissions > 0), priority=old.priority, cache_salt=old.cache_salt,
                    arrival=old.arrival, sample_group=old.sample_group, grammar_handle=old.grammar_handle,
                )  # fmt: skip
                self.scheduler.submit(expected.request)

    def plan(self) -> bool:
        """Plans one step if run-ahead and the ring allow it."""
        scheduler = self.scheduler
        if scheduler.num_in_flight > self.config.run_ahead or not self._writer.has_room() or not scheduler.has_work:
            return False
        plan = self._writer.next_slot()
        if not scheduler.plan(plan):
            return False
        self._check_extras(plan)
        self._writer.publish()
        return True

    def _check_extras(self, plan: PlanSlot) -> None:
        """Requests under penalties are admitted with what they have said so far."""
        for entry in plan.admissions[: plan.header["num_admissions"][0]]:
            request = self.scheduler.slots.requests[int(entry["slot"])]
            assert request is not None
            extras = plan.extras[int(entry["extras_start"]) :]
            bias, words, seen = 2 * int(entry["num_bias"]), int(entry["bad_words_size"]), int(entry["num_seen"])
            assert extras[: bias // 2].tolist() == [token for token, _ in request.sampling.logit_bias]
            ids, counts = extras[bias + words :][: 2 * seen].reshape(2, seen).tolist()
            tokens = request.tokens.tolist()
            prompt, output = tokens[: request.num_prompt_tokens], tokens[request.num_prompt_tokens :]
            if request.sampling.presence_penalty:
                expected = {token: 2 * output.count(token) + (token in prompt) for token in sorted(set(tokens))}
                assert dict(zip(ids, counts, strict=True)) == expected
            else:
                assert not seen
            recent = extras[bias + words + 2 * seen :][: int(entry["num_recent"])].tolist()
            assert recent == (output[-15:] if request.sampling.bad_words else [])

    def execute(self) -> bool:
        plan = self._reader.poll()
        if plan is None:
            return False
        header = plan.header[0]
        assert header["num_rows"] + header["num_chunk_tokens"] <= self.config.max_num_batched_tokens
        assert header["num_rows"] + header["num_chunks"] <= self.config.max_num_seqs
        self._executed.append(self.device.execute(plan))
        self._reader.consume()
        return True

    def confirm(self) -> bool:
        if not self._executed:
            return False
        rows = self.scheduler.confirm(*self._executed.popleft())
        for request, token in self.scheduler.take_constrained():
            self.requests[request.request_id].matched.append(token)
        self._take_logprobs(rows.logprobs)
        columns = (rows.frontends, rows.request_ids, rows.tokens, rows.finish)
        for frontend, request_id, token, finish in zip(*(column.tolist() for column in columns), strict=True):
            expected = self.requests[request_id]
            assert frontend == expected.request.frontend
            assert not expected.aborted, "a token of an aborted request was delivered"
            assert expected.finished is Finish.NONE, "a token came after the terminal event"
            expected.received.append(token)
            expected.finished = Finish(finish)
        return True

    def _take_logprobs(self, logprobs: ConfirmedLogprobs) -> None:
        columns = (logprobs.frontends, logprobs.request_ids, logprobs.records)
        for frontend, request_id, record in zip(*columns, strict=True):
            expected = self.requests[int(request_id)]
            assert frontend == expected.request.frontend
            assert not expected.aborted
            assert expected.finished is Finish.NONE, "a logprob came after the terminal event"
            expected.scored.append((int(record["position"]), int(record["token"])))

    def _check_logprobs(self, expected: Expected) -> None:
        """Each logprob that was asked for came once, in order."""
        sampling, num_prompt = expected.request.sampling, expected.request.num_prompt_tokens
        sequence = [*expected.request.tokens[:num_prompt].tolist(), *expected.received]
        first = 1 if sampling.prompt_logprobs >= 0 else num_prompt
        end = len(sequence) if sampling.logprobs >= 0 else num_prompt
        assert expected.scored == list(enumerate(sequence))[first:end]

    def run(self, limit: int = 100_000) -> None:
        """Until nothing is left to do."""
        for _ in range(limit):
            if not (self.plan() | self.execute() | self.confirm()):
                break
        assert not self.scheduler.has_work, "the engine stands still with work left"

    def check_integrity(self) -> None:
        """What must hold after every step."""
        _scheduler, pool, table = self.scheduler, self.scheduler.pool, self.scheduler.slots
        pool.check_integrity()
        _scheduler.swap.check_integrity()
        running = table.running()
        assert len(running) == table.num_running <= self.config.num_slots
        held = np.concatenate([table.blocks(request.slot) for request in running] or [np.empty(0, np.int32)])
        counts = np.bincount(held, minlength=pool.num_blocks)
        assert np.array_equal(counts, pool._ref_counts), "reference counts are not what the block tables say"
        for request in running:
            blocks = table.blocks(request.slot)
            assert len(set(blocks.tolist())) == blocks.size, "a block stands twice in one table"
            assert blocks.size <= self.config.max_blocks_per_seq

    def check_results(self) -> None:
        """What must hold at the end: every request got its tokens and its one terminal event, nothing is held."""
        for expected in self.requests.values():
            if expected.aborted:
                assert expected.received == expected.tokens[: len(expected.received)]
            else:
                assert expected.received == expected.tokens
                assert expected.finished is expected.finish
                assert expected.matched == (expected.tokens[:-1] if expected.request.has_grammar else [])
                self._check_logprobs(expected)
        assert self.scheduler.pool.num_used == 0
        assert self.scheduler.slots.num_running == 0
        assert self.scheduler.swap.pool.num_used == 0
        assert not self.scheduler._results._preempted
