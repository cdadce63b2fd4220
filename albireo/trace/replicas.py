"""One replica's records among those of a server of several: step numbers are each replica's own."""

from collections.abc import Sequence
from dataclasses import replace

from albireo.shm.flight import FlightLog
from albireo.trace.source import TraceError

_COORDINATOR, _WORKER, _GRAMMAR = "coordinator-", "worker-", "grammar-"


def of_replica(logs: Sequence[FlightLog], number: int | None = None) -> list[FlightLog]:
    """Its processes, under the names that they have in a server of one replica, and the frontends, which are of all.
    None: the first that has any. Raises TraceError where there is no such replica."""
    numbers = sorted(int(log.name.removeprefix(_COORDINATOR)) for log in logs if log.name.startswith(_COORDINATOR))
    if number is None and not numbers:
        return list(logs)
    chosen = numbers[0] if number is None else number
    if chosen not in numbers:
        raise TraceError(f"--replica {chosen}: there are records of {', '.join(map(str, numbers)) or 'none'}")
    # ranks are counted through all replicas
    degree = sum(log.name.startswith(_WORKER) for log in logs) // len(numbers)
    names = {f"{_COORDINATOR}{chosen}": f"{_COORDINATOR}0", f"{_GRAMMAR}{chosen}": f"{_GRAMMAR}0"}
    names |= {f"{_WORKER}{chosen * degree + rank}": f"{_WORKER}{rank}" for rank in range(degree)}
    names |= {log.name: log.name for log in logs if log.name.startswith("frontend-")}
    return [replace(log, name=names[log.name]) for log in logs if log.name in names]
