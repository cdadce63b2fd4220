"""Collectives whose every call goes into the flight record."""

from collections.abc import Callable

from torch import Tensor

from albireo.gpu_worker.collectives.interface import Collectives
from albireo.shm.flight import Part, Recorder


class RecordedCollectives:
    """As the group that it wraps; the time of a call is waiting for the other ranks and moving data."""

    def __init__(self, group: Collectives, recorder: Recorder, clock_ns: Callable[[], int]) -> None:
        self.rank, self.size = group.rank, group.size
        self._group = group
        self._recorder = recorder
        self._clock_ns = clock_ns

    @property
    def received_bytes(self) -> int:
        return self._group.received_bytes

    @received_bytes.setter
    def received_bytes(self, value: int) -> None:
        self._group.received_bytes = value

    def all_reduce(self, partial: Tensor, residual: Tensor | None = None) -> Tensor:
        begin_ns = self._clock_ns()
        result = self._group.all_reduce(partial, residual)
        self._record(begin_ns)
        return result

    def all_gather(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        begin_ns = self._clock_ns()
        result = self._group.all_gather(part, out)
        self._record(begin_ns)
        return result

    def all_to_all(self, parts: Tensor, out: Tensor | None = None) -> Tensor:
        begin_ns = self._clock_ns()
        result = self._group.all_to_all(parts, out)
        self._record(begin_ns)
        return result

    def close(self) -> None:
        self._group.close()

    def _record(self, begin_ns: int) -> None:
        recorder = self._recorder
        recorder.record(Part.COLLECTIVE, recorder.step, begin_ns, self._clock_ns(), recorder.num_rows)
