"""Which rank is stuck: heartbeats in shared memory, read by the supervisor, become a sentence.

A rank renews its heartbeat at every step, layer (in a captured step: kernel) and collective, twice a second while idle
and ten times a second while it waits for another rank (`layout.WORKER_HEARTBEAT`). So the rank whose own heartbeat
stands still is the one to name, not those that wait for it. (Under `--collectives gloo` those fall silent too:
torch.distributed does not come back while it waits. Then all of them are named.) A rank is watched from its first beat
on: the first thing that ranks do together, once each has loaded its weights.
"""

from typing import Any

import numpy.typing as npt

from albireo.messages import CollectiveKind

MAX_TICK_NS = 1_000_000_000
"""A look that comes later than this counts as no more: the supervisor itself was stopped, and the ranks with it."""


class RankWatch:
    """Remembers how long each heartbeat has not moved."""

    def __init__(self, workers: npt.NDArray[Any], timeout_ns: int, first: int = 0) -> None:
        """`workers`: WORKER_HEARTBEAT [t] in shared memory. `first`: the number in the name of rank 0."""
        self._first = first
        self._workers = workers
        self._timeout_ns = timeout_ns
        self._last_beats = workers["heartbeat_ns"].copy()
        self._silent_ns = [0] * len(workers)
        self._last_look_ns = 0

    def check(self, now_ns: int) -> str | None:
        """To be called several times a second: None, or what to say of the ranks that have been silent for the
        timeout, and of those that wait for them."""
        tick_ns = min(now_ns - self._last_look_ns, MAX_TICK_NS) if self._last_look_ns else 0
        self._last_look_ns = now_ns
        for rank, beat in enumerate(self._workers["heartbeat_ns"].tolist()):
            is_silent = beat and beat == self._last_beats[rank]
            self._silent_ns[rank] = self._silent_ns[rank] + tick_ns if is_silent else 0
            self._last_beats[rank] = beat
        stuck = [rank for rank, silent_ns in enumerate(self._silent_ns) if silent_ns >= self._timeout_ns]
        if not stuck:
            return None
        return "; ".join(
            f"worker-{self._first + rank} has not moved for {self._silent_ns[rank] / 1e9:.1f} s{self.last_seen(rank)}"
            for rank in stuck
        )

    def last_seen(self, rank: int) -> str:
        """Where the rank was and who waits for it, as the rest of a sentence."""
        entry = self._workers[rank]
        step = int(entry["running_step"])
        place = f" in step {step}" if step else f" after step {int(entry['step'])}"
        if waiting_for := int(entry["waiting_for"]):
            place += f", waiting for worker-{self._first + waiting_for - 1} in {kind_name(int(entry['waiting_in']))}"
        others = [
            f"worker-{other} in {kind_name(int(waiter['waiting_in']))} of step {int(waiter['running_step'])}"
            for other, waiter in enumerate(self._workers, self._first)
            if int(waiter["waiting_for"]) == rank + 1 and other != self._first + rank
        ]
        return f"{place}, awaited by {', '.join(others)}" if others else place


def kind_name(kind: int) -> str:
    """`all-reduce`, `all-gather`, ..."""
    return CollectiveKind(kind).name.lower().replace("_", "-")
