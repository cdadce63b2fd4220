"""A tensor-parallel group whose ranks are threads of this process, for tests of what is built on collectives.

One rank runs at a time, until it waits for the others: kernels keep their arguments in memory of the process, so
ranks must not overlap in time, and a test's order of events is always the same.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from albireo.gpu_worker.collectives.interface import Collectives

T = TypeVar("T")


class _Group:
    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: list[Tensor | None] = [None] * size
        self.turn = threading.Condition()
        self.arrived = 0
        self.round = 0
        self.broken = False

    def exchange(self, rank: int, part: Tensor) -> list[Tensor]:
        """Called with `turn` held; waiting releases it, so that the next rank runs."""
        if self.arrived == 0:
            self.parts = [None] * self.size
        self.parts[rank] = part.clone()
        self.arrived += 1
        mine = self.round
        if self.arrived == self.size:
            self.arrived = 0
            self.round += 1
            self.turn.notify_all()
        parts = self.parts
        if not self.turn.wait_for(lambda: self.round > mine or self.broken, timeout=60) or self.broken:
            raise RuntimeError("another rank failed or never came")
        return [part for part in parts if part is not None]


class ThreadCollectives:
    """One rank's end of a `_Group`."""

    def __init__(self, group: _Group, rank: int) -> None:
        self._group = group
        self.rank = rank
        self.size = group.size
        self.received_bytes = 0

    def all_reduce(self, partial: Tensor, residual: Tensor | None = None) -> Tensor:
        total = torch.stack(self._group.exchange(self.rank, partial)).float().sum(0)
        self.received_bytes += 2 * (self.size - 1) * partial.nbytes // self.size
        return (total if residual is None else total + residual.float()).to(partial.dtype)

    def all_gather(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        self.received_bytes += (self.size - 1) * part.nbytes
        gathered = torch.stack(self._group.exchange(self.rank, part))
        return gathered if out is None else out.copy_(gathered)

    def all_to_all(self, parts: Tensor, out: Tensor | None = None) -> Tensor:
        self.received_bytes += (self.size - 1) * parts[0].nbytes
        exchanged = torch.stack([part[self.rank] for part in self._group.exchange(self.rank, parts)])
        return exchanged if out is None else out.copy_(exchanged)

    def close(self) -> None:
        pass


class ThreadGroup:
    """Ranks that outlive one piece of work."""

    def __init__(self, size: int) -> None:
        self._group = _Group(size)
        self.collectives = [ThreadCollectives(self._group, rank) for rank in range(size)]

    def run(self, work: Callable[[int], T]) -> list[T]:
        """`work(rank)` on every rank; the results by rank. Raises the first rank's error."""
        group = self._group
        results: list[T | None] = [None] * group.size
        errors: list[BaseException | None] = [None] * group.size

        def run(rank: int) -> None:
            with group.turn:
                try:
                    results[rank] = work(rank)
                except BaseException as error:
                    errors[rank] = error
                    group.broken = True
                    group.turn.notify_all()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(group.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        own = [error for error in errors if error is not None and not str(error).startswith("another rank")]
        for error in own or [error for error in errors if error is not None]:
            raise error
        return results  # type: ignore[return-value]


def run_ranks(size: int, work: Callable[[Collectives], T]) -> list[T]:
    """`work` on every rank of a group of its own; its results by rank. Raises the first rank's error."""
    group = ThreadGroup(size)
    return group.run(lambda rank: work(group.collectives[rank]))
