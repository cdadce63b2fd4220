"""Collectives by torch.distributed: gloo on the CPU is the reference for `shm`, the same code runs on NCCL."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from albireo.gpu_worker.collectives.interface import as_bytes
from albireo.messages import CollectiveKind

_LOOPBACK: Final = "lo"


class TorchCollectives:
    """One rank's end of torch.distributed's default group. The heartbeat is renewed when an operation begins; it
    does not say for whom this rank waits, since the backends do not."""

    def __init__(
        self,
        backend: Literal["gloo", "nccl"],
        init_file: Path,
        rank: int,
        size: int,
        heartbeat: npt.NDArray[Any],
        clock_ns: Callable[[], int],
    ) -> None:
        """Waits for all ranks. `init_file` lies in a private directory, and no group has used it before."""
        self.rank = rank
        self.size = size
        self.received_bytes = 0
        self._heartbeat = heartbeat
        self._clock_ns = clock_ns
        if backend == "gloo":
            # set here and not read: gloo takes the interface of the host's name otherwise, which others can reach
            os.environ["GLOO_SOCKET_IFNAME"] = _LOOPBACK
        dist.init_process_group(backend, init_method=f"file://{init_file.resolve()}", rank=rank, world_size=size)

    def all_reduce(self, partial: Tensor, residual: Tensor | None = None) -> Tensor:
        """Adds up in float32 on the wire; the order is the backend's."""
        self._begin(CollectiveKind.ALL_REDUCE)
        self.received_bytes += 2 * (self.size - 1) * partial.nbytes // self.size
        total = partial.float()
        if total.numel():
            dist.all_reduce(total)
        if residual is not None:
            total += residual
        self._end()
        return total.to(partial.dtype)

    def all_gather(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        self._begin(CollectiveKind.ALL_GATHER)
        self.received_bytes += (self.size - 1) * part.nbytes
        if out is None:
            out = torch.empty((self.size, *part.shape), dtype=part.dtype, device=part.device)
        if part.numel():
            dist.all_gather(list(as_bytes(out).chunk(self.size)), as_bytes(part))
        self._end()
        return out

    def all_to_all(self, parts: Tensor, out: Tensor | None = None) -> Tensor:
        self._begin(CollectiveKind.ALL_TO_ALL)
        self.received_bytes += (self.size - 1) * parts.nbytes // self.size
        if out is None:
            out = torch.empty_like(parts)
        if parts.numel():
            dist.all_to_all_single(as_bytes(out), as_bytes(parts))
        self._end()
        return out

    def close(self) -> None:
        dist.destroy_process_group()

    def _begin(self, kind: CollectiveKind) -> None:
        self._heartbeat["collective"] += 1
        self._heartbeat["waiting_in"] = int(kind)
        self._heartbeat["heartbeat_ns"] = self._clock_ns()

    def _end(self) -> None:
        self._heartbeat["waiting_in"] = 0
