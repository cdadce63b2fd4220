"""All shared memory of one engine, made by the supervisor before any child starts."""

from collections.abc import Sequence

from albireo.config import SchedulerConfig, SegmentFds
from albireo.shm import flight, request_counts, routes, segment, stats
from albireo.shm.collective_segment import CollectiveSegment
from albireo.shm.grammar_masks import GrammarMasks
from albireo.shm.plan_ring import PlanRing
from albireo.shm.segment import Segment
from albireo.shm.token_ring import TokenRing


def create_segments(
    scheduler: SchedulerConfig,
    num_workers: int,
    processes: Sequence[str],
    num_counters: int = 1,
    vocab_size: int | None = None,
) -> SegmentFds:
    """Anonymous segments of one replica of `num_workers` ranks, and a flight recorder for each of `processes`, headers
    written; grammar masks for sequences over a vocabulary of `vocab_size`, if given. `num_counters`: who counts
    requests there and says where they go, each frontend once for each replica; 0 for all replicas but the first.
    Raises segment.SegmentError when there is too little memory."""
    plan_ring, token_ring = PlanRing(scheduler, num_workers), TokenRing(scheduler)
    fds = SegmentFds(
        plan_ring=segment.create("plan-ring", plan_ring.geometry.size),
        token_rings=tuple(
            segment.create(f"token-ring-{rank}", token_ring.geometry.size) for rank in range(num_workers)
        ),
        stats=segment.create("stats", stats.stats_bytes(num_workers)),
        collectives=_create_collectives(num_workers) if num_workers > 1 else -1,
        requests=_create_requests(num_counters) if num_counters else -1,
        routes=_create_routes(num_counters) if num_counters else -1,
        flight={name: _create_flight(name) for name in processes},
        grammar=-1 if vocab_size is None else _create_grammar(scheduler, vocab_size),
    )
    plan_ring.initialise(fds.plan_ring)
    for fd in fds.token_rings:
        token_ring.initialise(fd)
    stats.initialise(fds.stats, num_workers)
    return fds


def reset_rings(fds: SegmentFds, scheduler: SchedulerConfig, num_workers: int) -> None:
    """Forgets the steps that were planned and not run. Nobody may be attached to rings and collectives: the workers are
    dead, and the coordinator has halted. Step numbers go on."""
    step = PlanRing(scheduler, num_workers).geometry.skip(fds.plan_ring)
    for fd in fds.token_rings:
        TokenRing(scheduler).geometry.restart(fd, step)
    if num_workers > 1:
        Segment(fds.collectives).data[:] = 0
        CollectiveSegment(num_workers).initialise(fds.collectives)


def _create_collectives(num_workers: int) -> int:
    collectives = CollectiveSegment(num_workers)
    fd = segment.create("collectives", collectives.size)
    collectives.initialise(fd)
    return fd


def _create_requests(num_counters: int) -> int:
    fd = segment.create("requests", request_counts.request_counts_bytes(num_counters))
    request_counts.initialise(fd, num_counters)
    return fd


def _create_routes(num_parts: int) -> int:
    fd = segment.create("routes", routes.routes_bytes(num_parts))
    routes.initialise(fd, num_parts)
    return fd


def _create_grammar(scheduler: SchedulerConfig, vocab_size: int) -> int:
    masks = GrammarMasks(scheduler.num_slots, vocab_size)
    fd = segment.create("grammar", masks.size)
    masks.initialise(fd)
    return fd


def _create_flight(name: str) -> int:
    fd = segment.create(f"flight-{name}", flight.flight_bytes())
    flight.initialise(fd, name)
    return fd
