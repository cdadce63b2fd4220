"""A simulated GPU: it obeys plans, says the tokens of `token_rule`, and takes the time that a roofline says.

It is driven as a GPU is: steps are launched behind those that still run, and one begins at the very end of the one
before if it was launched by then, otherwise when it was launched. So the worker's own work lies behind the device's
wherever it would on a GPU, and is exposed where plans come late. The device's clock is exact: a worker that takes
notice of a step's end late changes nothing of when the next one began.

Ranks keep time each by itself. They begin a step within microseconds of each other, as they see its plan at once; a
rank whose process gets no core falls behind alone, until the coordinator, who waits for all, has the others wait.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from albireo.checkpoint import kv_bytes_per_block
from albireo.checkpoint.shard import shard_model
from albireo.config import WorkerConfig
from albireo.gpu_worker.null_device import rank_kv_blocks
from albireo.gpu_worker.token_rule import RuleState
from albireo.shm.flight import Part, Recorder
from albireo.shm.plan_ring import PlanCounts, PlanSlot
from albireo.shm.token_ring import TokenSlot
from albireo.sim.roofline import Roofline, StepTimes, StepWork
from albireo.sim.spec import DeviceSpec


class Timer(Protocol):
    """As `StepTimer`."""

    fd: int

    def set(self, time_ns: int) -> None: ...


class _InFlight(NamedTuple):
    sequence: int
    num_rows: int
    """As records count them."""
    times: StepTimes
    swap_ns: int
    begin_ns: int
    """Of its work; block copies lie before it."""
    end_ns: int


class SimDevice:
    """One rank."""

    def __init__(
        self,
        config: WorkerConfig,
        spec: DeviceSpec,
        recorder: Recorder,
        clock_ns: Callable[[], int],
        timer: Timer,
        count_use: Callable[[int, float], None] = lambda busy_ns, working_s: None,
    ) -> None:
        """`count_use` is told of each step how long the device was busy with it, and how long of that it computed."""
        self.name = f"sim:{spec.name}"
        self.num_kv_blocks = rank_kv_blocks(config)
        self.wake_fd = timer.fd
        self.state = RuleState(config.scheduler)
        self._roofline = Roofline(
            config.model, config.num_workers, config.dtype, spec, config.sampling_mode, config.enforce_eager
        )
        local = shard_model(config.model, config.rank, config.num_workers).local(config.model)
        self._block_bytes = kv_bytes_per_block(local, config.scheduler.block_size, config.dtype)
        self._vocab_size = config.model.vocab_size
        self._recorder = recorder
        self._clock_ns = clock_ns
        self._timer = timer
        self._count_use = count_use
        self._in_flight: deque[_InFlight] = deque()
        self._free_ns = 0
        """When the last launched step ends."""

    def launch(self, plan: PlanSlot, result: TokenSlot) -> None:
        counts = plan.counts()
        self.state.apply(plan)
        times = self._roofline.step(step_work(plan, counts, self.state.num_tokens[self.state.rows]))
        swap_ns = round(1e9 * self._roofline.swap((counts.num_swap_outs + counts.num_swap_ins) * self._block_bytes))
        begin_ns = max(self._recorder.mark(Part.FETCH_PLAN), self._free_ns) + swap_ns
        self._free_ns = end_ns = begin_ns + round(1e9 * times.total)
        num_rows = counts.num_rows + counts.num_chunk_tokens
        self._in_flight.append(_InFlight(counts.sequence, num_rows, times, swap_ns, begin_ns, end_ns))
        if len(self._in_flight) == 1:
            self._timer.set(end_ns)
        # what the step will have done when its time is over; nobody looks before
        self.state.write(self.state.sample(plan, self._vocab_size), plan, result)
        result.header["begin_ns"], result.header["end_ns"], result.header["swap_ns"] = begin_ns, end_ns, swap_ns
        self._recorder.mark(Part.INPUT_PREP)

    def finish_oldest(self) -> bool:
        if self._clock_ns() < self._in_flight[0].end_ns:
            return False
        done = self._in_flight.popleft()
        self._timer.set(self._in_flight[0].end_ns if self._in_flight else 0)
        self._record(done)
        self._count_use(done.end_ns - done.begin_ns, done.times.working)
        return True

    def _record(self, done: _InFlight) -> None:
        record, sampling_ns = self._recorder.record, done.end_ns - round(1e9 * done.times.sample)
        if done.swap_ns:
            record(Part.SWAP, done.sequence, done.begin_ns - done.swap_ns, done.begin_ns, done.num_rows)
        record(Part.FORWARD, done.sequence, done.begin_ns, sampling_ns, done.num_rows)
        if sampling_ns < done.end_ns:
            record(Part.SAMPLE, done.sequence, sampling_ns, done.end_ns, done.num_rows)


def step_work(plan: PlanSlot, counts: PlanCounts, row_tokens: npt.NDArray[np.int32]) -> StepWork:
    """What `plan` has a device do. `row_tokens`: of its decode rows' sequences, the token that is computed included."""
    num_rows, context_tokens = counts.num_rows, int(row_tokens.sum(dtype=np.int64))
    if not counts.num_chunks:
        return StepWork(num_rows, context_tokens, num_samples=num_rows)
    chunks = plan.chunks[: counts.num_chunks]
    start, tokens = chunks["start"].astype(np.int64), chunks["num_tokens"].astype(np.int64)
    pairs = int((tokens * start + tokens * (tokens + 1) // 2).sum())
    num_samples = num_rows + int(np.count_nonzero(chunks["samples"]))
    return StepWork(num_rows, context_tokens, int(tokens.sum()), pairs, int((start + tokens).sum()), num_samples)
