"""Plans and results on the GPU: rings of as many slots as those in shared memory, which the host copies to and from.

A plan is copied when its step is launched, on a stream of its own, so it is there when the step begins; results are
copied when the step is done, while the next one runs. Kernels that read and wrote the shared memory in place, over the
bus, took 110 microseconds of every step (docs/benchmarks/cuda.md).
"""

import torch
from torch import Tensor

from albireo.config import SchedulerConfig, SegmentFds
from albireo.gpu_worker.cuda.runtime import Runtime
from albireo.shm import layout
from albireo.shm.plan_ring import PlanCounts, PlanRing
from albireo.shm.ring import cursor
from albireo.shm.segment import Segment
from albireo.shm.token_ring import TokenRing

LOGPROB_WORDS = layout.LOGPROB.itemsize // 4


class StepRings:
    """Step n uses slot n % num_slots of both. A slot's contents are those of the slot in shared memory, as far as the
    GPU needs them."""

    def __init__(
        self, runtime: Runtime, scheduler: SchedulerConfig, num_workers: int, rank: int, fds: SegmentFds
    ) -> None:
        plan_ring, token_ring = PlanRing(scheduler, num_workers), TokenRing(scheduler)
        self._runtime = runtime
        self._plan_geometry, self._token_geometry = plan_ring.geometry, token_ring.geometry
        self.num_slots = plan_ring.geometry.num_slots
        assert self.num_slots == token_ring.geometry.num_slots, "one count of steps finds its slot in both rings"
        offsets = plan_ring.array_offsets
        self._appends_offset, self._admissions_offset = offsets["appends"], offsets["admissions"]
        self.rows_at, self.appends_at, self.admissions_at = (
            offsets[name] // 4 for name in ("rows", "appends", "admissions")
        )  # fmt: skip
        """int32 words into a plan."""
        self.plans = _zeros(runtime, self.num_slots, offsets["chunks"] // 4)
        """int32 [num_slots, ..]: header, rows, appends, admissions."""
        self.result_rows_at = token_ring.rows_offset // 4
        """int32 words into a result."""
        self.results = _zeros(runtime, self.num_slots, self.result_rows_at + 4 * scheduler.max_num_seqs)
        """int32 [num_slots, ..]: TOKEN_HEADER, of which only the stamps are the device's, and rows."""
        self.stamps = self.results.view(torch.int64)[:, layout.TOKEN_HEADER.fields["stamps"][1] // 8 :]  # type: ignore[index]
        """int64 [num_slots, ..]: the device's clock at a step's begin, before sampling and at its end."""
        plan_segment = Segment(fds.plan_ring)
        self.last_step = cursor(plan_segment, self._plan_geometry.consumed(rank))[0]
        """Of the workers before this one, 0 if there were none: step numbers go on."""
        self._plan_memory = plan_segment.data
        self._token_memory = Segment(fds.token_rings[rank]).data
        runtime.pin(self._plan_memory)
        runtime.pin(self._token_memory)
        self._token_words = torch.from_numpy(self._token_memory).view(torch.int32)
        self._logprobs_at = token_ring.logprobs_offset // 4

    def send_plan(self, counts: PlanCounts) -> None:
        """Copies the plan of step `counts.sequence` to the device."""
        index = counts.sequence % self.num_slots
        source = self._plan_memory.ctypes.data + self._plan_geometry.slot_offset(index)
        target = self.plans.data_ptr() + index * self.plans.stride(0) * 4
        nbytes = self._appends_offset + counts.num_appends * layout.BLOCK_APPEND.itemsize
        self._runtime.send(target, source, nbytes)
        if counts.num_admissions:
            nbytes, offset = counts.num_admissions * layout.ADMISSION.itemsize, self._admissions_offset
            self._runtime.send(target + offset, source + offset, nbytes)
        self._runtime.wait_for_sent()

    def fetch_results(self, step: int, num_rows: int) -> tuple[int, int, int]:
        """(target, source, bytes) of the copy that brings a step's results to the token ring."""
        index = step % self.num_slots
        target = self._token_memory.ctypes.data + self._token_geometry.slot_offset(index)
        source = self.results.data_ptr() + index * self.results.stride(0) * 4
        return target, source, 4 * (self.result_rows_at + 4 * num_rows)

    def logprobs(self, step: int) -> Tensor:
        """int32 [max_logprobs, 48]: the step's LOGPROB records, in shared memory; kernels write there in place, since
        few steps have any."""
        start = self._token_geometry.slot_offset(step % self.num_slots) // 4
        start, end = start + self._logprobs_at, start + self._token_geometry.slot_bytes // 4
        count = (end - start) // LOGPROB_WORDS
        return self._token_words[start : start + count * LOGPROB_WORDS].view(count, LOGPROB_WORDS)


def _zeros(runtime: Runtime, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32, device=runtime.device)
