"""The null device by hand-written plans, and under the real scheduler."""

import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from albireo.checkpoint import read_checkpoint
from albireo.config import SchedulerConfig, SegmentFds, WorkerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.scheduler import Scheduler
from albireo.gpu_worker.null_device import NullDevice
from albireo.gpu_worker.token_rule import FIRST_TOKEN, NUM_TOKENS, next_tokens
from albireo.messages import Finish, SamplingParams
from albireo.serve import DEMO_MODEL
from albireo.shm import segment
from albireo.shm.flight import Unrecorded
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing

SCHEDULER = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=64, block_size=16)
BLOCK_BYTES = 2 * 5 * 2 * 16 * 64 * 2
VOCAB_SIZE = 3072


def worker_config(num_blocks: int, step_ms: float = 0.0) -> WorkerConfig:
    checkpoint = read_checkpoint(str(DEMO_MODEL), check_weights=False)
    return WorkerConfig(
        name="worker-0", run_dir="", log_level="info", scheduler=SCHEDULER, segments=SegmentFds(-1, (), -1), rank=0,
        num_workers=1, sampling_mode="local", collectives="shm", model=checkpoint.model, model_path=checkpoint.path,
        device="null", dtype="bfloat16", kv_cache_bytes=num_blocks * BLOCK_BYTES, num_threads=1,
        load_format="safetensors", seed=0, null_step_ms=step_ms,
    )  # fmt: skip


class Rings:
    """A scheduler and a null device between real rings, stepped by hand."""

    def __init__(self, num_blocks: int = 40, eos: tuple[int, ...] = (), step_ms: float = 0.0) -> None:
        self.device = NullDevice(worker_config(num_blocks, step_ms), Unrecorded(time.monotonic_ns), time.monotonic_ns)
        self.scheduler = Scheduler(SCHEDULER, self.device.num_kv_blocks, eos, hash_key=b"key")
        self.outputs: dict[int, list[int]] = {}
        self.finishes: dict[int, Finish] = {}
        self.records: list[np.void] = []
        plan_ring, token_ring = PlanRing(SCHEDULER, 1), TokenRing(SCHEDULER)
        fds = [segment.create("plan", plan_ring.geometry.size), segment.create("token", token_ring.geometry.size)]
        plan_ring.initialise(fds[0])
        token_ring.initialise(fds[1])
        self._plans, self._plans_read = plan_ring.writer(fds[0]), plan_ring.reader(fds[0], 0)
        self._tokens, self._tokens_read = token_ring.writer(fds[1]), token_ring.reader(fds[1])
        self._executed: deque[tuple[Any, Any]] = deque()
        for fd in fds:
            os.close(fd)

    def submit(self, prompt: list[int], **sampling: Any) -> int:
        number = len(self.outputs)
        self.outputs[number] = []
        parameters = SamplingParams(seed=number, **sampling)
        total = min(len(prompt) + parameters.max_tokens, SCHEDULER.max_model_len)
        self.scheduler.submit(
            Request(
                frontend=0, request_id=number, sampling=parameters, tokens=np.array(prompt, np.int32), priority=0,
                cache_salt="", arrival=number, max_total_tokens=total,
            )
        )  # fmt: skip
        return number

    def _execute(self) -> None:
        plan = self._plans_read.poll()
        assert plan is not None, "work is left and no plan for it"
        result = self._tokens.next_slot()
        self.device.execute(plan, result)
        self._tokens.publish()
        self._plans_read.consume()
        assert self._tokens_read.poll() is not None
        num_rows, num_logprobs = int(result.header["num_rows"][0]), int(result.header["num_logprobs"][0])
        self._executed.append((result.rows[:num_rows].copy(), result.logprobs[:num_logprobs].copy()))
        self._tokens_read.consume()

    def run(self) -> None:
        """Until every request has ended, as far ahead as the config says."""
        while self.scheduler.has_work:
            while self.scheduler.num_in_flight <= SCHEDULER.run_ahead and self.scheduler.has_work:
                if not self.scheduler.plan(self._plans.next_slot()):
                    break
                self._plans.publish()
            self._execute()
            rows = self.scheduler.confirm(*self._executed.popleft())
            self.records += list(rows.logprobs.records)
            columns = (rows.request_ids, rows.tokens, rows.finish)
            for number, token, finish in zip(*(column.tolist() for column in columns), strict=True):
                assert number not in self.finishes, "a token came after the end"
                self.outputs[number].append(token)
                if finish:
                    self.finishes[number] = Finish(finish)


def by_rule(seed: int, first: int, count: int) -> list[int]:
    positions = np.arange(first, first + count, dtype=np.int32)
    tokens: list[int] = next_tokens(np.full(count, seed, np.uint64), positions, VOCAB_SIZE).tolist()
    return tokens


def test_every_request_gets_the_tokens_of_the_rule_whatever_runs_beside_it() -> None:
    rings = Rings()
    lengths = [(1, 9), (40, 3), (17, 30), (5, 1), (33, 20), (2, 60), (3, 12), (9, 9), (12, 4), (30, 34)]
    for prompt, output in lengths:
        rings.submit([7] * prompt, max_tokens=output)
    rings.run()
    for number, (prompt, output) in enumerate(lengths):
        assert rings.outputs[number] == by_rule(number, prompt, output)
        assert rings.finishes[number] == Finish.LENGTH


def test_preemption_does_not_change_a_text() -> None:
    rings = Rings(num_blocks=6)
    for _ in range(4):
        rings.submit([7] * 8, max_tokens=40)
    rings.run()
    assert rings.scheduler.counters.num_preemptions
    assert [rings.outputs[number] for number in range(4)] == [by_rule(number, 8, 40) for number in range(4)]


def test_eos_and_stop_ids_end_a_request_where_they_first_come_up() -> None:
    eos = by_rule(0, 4, 8)[6]
    stop = by_rule(1, 4, 8)[3]
    rings = Rings(eos=(eos,))
    rings.submit([7] * 4, max_tokens=50)
    rings.submit([7] * 4, max_tokens=50, stop_token_ids=(stop,), ignore_eos=True)
    rings.submit([7] * 4, max_tokens=20, ignore_eos=True)
    rings.run()
    expected = by_rule(0, 4, 50)
    assert rings.outputs[0] == expected[: expected.index(eos) + 1]
    expected = by_rule(1, 4, 50)
    assert rings.outputs[1] == expected[: expected.index(stop) + 1]
    assert len(rings.outputs[2]) == 20
    assert [rings.finishes[number] for number in range(3)] == [Finish.EOS, Finish.STOP_TOKEN, Finish.LENGTH]


def test_a_stop_id_below_min_tokens_does_not_end_a_request() -> None:
    rings = Rings()
    tokens = by_rule(0, 4, 50)
    rings.submit([7] * 4, max_tokens=50, stop_token_ids=(tokens[1],), min_tokens=2)
    rings.run()
    assert len(rings.outputs[0]) > 2
    assert rings.outputs[0] == tokens[: len(rings.outputs[0])]


def test_logprobs_of_output_and_prompt_come_once_each_and_are_zero() -> None:
    rings = Rings()
    rings.submit([7] * 40, max_tokens=3, logprobs=2, prompt_logprobs=0)
    rings.submit([7] * 40, max_tokens=3)
    rings.run()
    assert [int(record["position"]) for record in rings.records] == list(range(1, 43))
    assert [int(record["token"]) for record in rings.records] == [7] * 39 + rings.outputs[0]
    assert {(float(record["logprob"]), int(record["num_top"])) for record in rings.records} == {(0.0, 0)}


def test_tokens_are_printable_ids_and_lie_in_small_vocabularies_too() -> None:
    seeds, positions = np.arange(2000, dtype=np.uint64), np.arange(2000, dtype=np.int32)
    tokens = next_tokens(seeds, positions, VOCAB_SIZE)
    assert set(tokens.tolist()) == set(range(FIRST_TOKEN, FIRST_TOKEN + NUM_TOKENS))
    assert set(next_tokens(seeds, positions, 5).tolist()) == set(range(5))
    huge = next_tokens(np.array([2**64 - 1], np.uint64), np.array([2**31 - 1], np.int32), VOCAB_SIZE)
    assert FIRST_TOKEN <= int(huge[0]) < FIRST_TOKEN + NUM_TOKENS


def test_a_step_takes_its_time_asleep() -> None:
    rings = Rings(step_ms=20.0)
    rings.submit([7], max_tokens=5)
    started, cpu = time.monotonic(), time.thread_time()
    rings.run()
    assert time.monotonic() - started >= 5 * 0.020
    assert time.thread_time() - cpu < 5 * 0.020


@pytest.mark.parametrize("module", ["torch", "numba"])
def test_the_null_device_starts_without(module: str) -> None:
    program = (
        f"import sys, albireo.gpu_worker.__main__, albireo.gpu_worker.null_device; sys.exit({module!r} in sys.modules)"
    )
    folder = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=folder, check=False).returncode == 0
