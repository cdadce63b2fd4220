"""Both rings as kernels see them: the segments' memory, and where things lie in it, in int32 words."""

from dataclasses import dataclass

from torch import Tensor

from albireo.config import SchedulerConfig, SegmentFds
from albireo.gpu_worker.cuda.runtime import Runtime
from albireo.shm import layout
from albireo.shm.plan_ring import PlanRing
from albireo.shm.segment import Segment
from albireo.shm.token_ring import TokenRing

LOGPROB_WORDS = layout.LOGPROB.itemsize // 4


@dataclass(frozen=True, slots=True)
class MappedRing:
    """One ring. `words` int32 [..]; the rest as kernels take it."""

    words: Tensor
    slots_at: int
    slot_words: int
    num_slots: int
    arrays_at: dict[str, int]
    """By name, words into a slot."""


def map_plan_ring(runtime: Runtime, scheduler: SchedulerConfig, num_workers: int, fd: int) -> MappedRing:
    ring = PlanRing(scheduler, num_workers)
    geometry = ring.geometry
    arrays_at = {name: offset // 4 for name, offset in ring.array_offsets.items()}
    words = runtime.share(Segment(fd).data)
    return MappedRing(words, geometry.slots_offset // 4, geometry.slot_bytes // 4, geometry.num_slots, arrays_at)


def map_token_ring(runtime: Runtime, scheduler: SchedulerConfig, fd: int) -> MappedRing:
    ring = TokenRing(scheduler)
    geometry = ring.geometry
    arrays_at = {"rows": ring.rows_offset // 4, "logprobs": ring.logprobs_offset // 4}
    words = runtime.share(Segment(fd).data)
    return MappedRing(words, geometry.slots_offset // 4, geometry.slot_bytes // 4, geometry.num_slots, arrays_at)


@dataclass(frozen=True, slots=True)
class MappedRings:
    plans: MappedRing
    tokens: MappedRing

    @classmethod
    def of(
        cls, runtime: Runtime, scheduler: SchedulerConfig, num_workers: int, rank: int, fds: SegmentFds
    ) -> "MappedRings":
        plans = map_plan_ring(runtime, scheduler, num_workers, fds.plan_ring)
        tokens = map_token_ring(runtime, scheduler, fds.token_rings[rank])
        assert plans.num_slots == tokens.num_slots, "one count of steps finds its slot in both rings"
        return cls(plans, tokens)

    def logprobs(self, step: int) -> Tensor:
        """int32 [max_logprobs, 48]: the step's LOGPROB records in the token ring."""
        ring = self.tokens
        slot = ring.slots_at + step % ring.num_slots * ring.slot_words
        start, end = slot + ring.arrays_at["logprobs"], slot + ring.slot_words
        count = (end - start) // LOGPROB_WORDS
        return ring.words[start : start + count * LOGPROB_WORDS].view(count, LOGPROB_WORDS)
