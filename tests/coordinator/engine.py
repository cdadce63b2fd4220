"""A scheduler and a fake device joined by a real plan ring, driven by hand: what tests of the scheduler share."""

import os
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from fake_device import FakeDevice, reference

from albireo.config import SchedulerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.scheduler import Scheduler
from albireo.messages import Finish, SamplingParams
from albireo.shm import segment
from albireo.shm.plan_ring import PlanRing

EOS = (3, 4)


@dataclass
class Expected:
    request: Request
    tokens: list[int]
    finish: Finish
    received: list[int] = field(default_factory=list)
    finished: Finish = Finish.NONE
    aborted: bool = False


class Engine:
    """One step of each part at a time: plan, execute, confirm."""

    def __init__(self, config: SchedulerConfig, num_blocks: int) -> None:
        self.config = config
        self.scheduler = Scheduler(config, num_blocks, EOS, hash_key=b"key")
        self.device = FakeDevice(config, num_blocks)
        self.requests: dict[int, Expected] = {}
        self._executed: deque[np.ndarray] = deque()
        ring = PlanRing(config, 1)
        fd = segment.create("plan", ring.geometry.size)
        ring.initialise(fd)
        self._writer, self._reader = ring.writer(fd), ring.reader(fd, 0)
        os.close(fd)

    def submit(
        self, prompt: list[int], max_tokens: int = 8, *, stop: tuple[int, ...] = (), ignore_eos: bool = False,
        priority: int = 0, salt: str = "",
    ) -> Expected:  # fmt: skip
        request_id = len(self.requests)
        sampling = SamplingParams(max_tokens=max_tokens, seed=request_id, stop_token_ids=stop, ignore_eos=ignore_eos)
        max_total = min(len(prompt) + max_tokens, self.config.max_model_len)
        request = Request(
            frontend=request_id % 2, request_id=request_id, sampling=sampling, tokens=np.array(prompt, np.int32),
            max_total_tokens=max_total, priority=priority, cache_salt=salt,
            arrival=request_id,
        )  # fmt: skip
        expected = Expected(request, *reference(prompt, request_id, max_total, () if ignore_eos else EOS, stop))
        self.requests[request_id] = expected
        self.scheduler.submit(request)
        return expected

    def abort(self, expected: Expected) -> None:
        self.scheduler.abort(expected.request)
        expected.aborted = True

    def plan(self) -> bool:
        """Plans one step if run-ahead and the ring allow it."""
        scheduler = self.scheduler
        if scheduler.num_in_flight > self.config.run_ahead or not self._writer.has_room() or not scheduler.has_work:
            return False
        if not scheduler.plan(self._writer.next_slot()):
            return False
        self._writer.publish()
        return True

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
        rows = self.scheduler.confirm(self._executed.popleft())
        columns = (rows.frontends, rows.request_ids, rows.tokens, rows.finish)
        for frontend, request_id, token, finish in zip(*(column.tolist() for column in columns), strict=True):
            expected = self.requests[request_id]
            assert frontend == expected.request.frontend
            assert not expected.aborted, "a token of an aborted request was delivered"
            assert expected.finished is Finish.NONE, "a token came after the terminal event"
            expected.received.append(token)
            expected.finished = Finish(finish)
        return True

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
        assert self.scheduler.pool.num_used == 0
        assert self.scheduler.slots.num_running == 0
        assert not self.scheduler._preempted_in_flight
