"""What a decode step of a fixed batch takes at one degree, from the flight record of a server of several replicas."""

from collections.abc import Sequence

import numpy as np

from albireo.shm.flight import FlightLog, Part
from albireo.trace.intervals import covered_ns, union
from albireo.trace.replicas import of_replica
from albireo.trace.steps import find_steps, records_of
from albireo.tune.figures import StepCost


def step_cost(logs: Sequence[FlightLog], num_replicas: int, batch: int, since_ns: int) -> StepCost | None:
    """Of the replica with the most steps of exactly `batch` rows that decode and nothing else; None where none had any.
    `since_ns`: of steps that began later."""
    costs = [_replica_cost(of_replica(logs, number), batch, since_ns) for number in range(num_replicas)]
    return max((cost for cost in costs if cost is not None), key=lambda cost: cost.num_steps, default=None)


def _replica_cost(logs: Sequence[FlightLog], batch: int, since_ns: int) -> StepCost | None:
    steps = find_steps(logs)
    steps = steps.take(steps.begin_ns > since_ns).decoding(batch)
    if not len(steps):
        return None
    collectives = records_of(logs, "worker-0", Part.COLLECTIVE)
    exchanged = union(collectives["begin_ns"], collectives["end_ns"])
    within_ns = covered_ns(steps.begin_ns, steps.end_ns, exchanged)
    num_ranks = sum(log.name.startswith("worker-") for log in logs)
    # ranks that exchange and say nothing of it leave it unknown; a single rank does not exchange
    known = num_ranks == 1 or within_ns.any()
    return StepCost(
        batch=batch,
        num_steps=len(steps),
        period_us=float(np.median(steps.period_ns)) / 1e3,
        device_us=float(np.median(steps.end_ns - steps.begin_ns)) / 1e3,
        exposed_us=float(np.median(steps.gap_ns)) / 1e3,
        collective_us=float(np.median(within_ns)) / 1e3 if known else None,
    )
