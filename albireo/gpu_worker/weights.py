"""Where a model's tensors come from: memory-mapped safetensors, or random numbers of the right shapes.

The seam for tensor parallelism: a layer fetches each weight by its checkpoint name with the rows or columns it
wants, so that a rank touches only its own part of the files.
"""

import mmap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from albireo.checkpoint.stored_tensors import StoredTensor, read_stored_tensors
from albireo.checkpoint.structs import ModelConfig
from albireo.checkpoint.weight_shapes import check_stored, weight_shapes

OnProgress = Callable[[str, float], None]
"""Called with a stage's name and the fraction of it that is done."""

CPU: Final = torch.device("cpu")
STAGE: Final = "loading weights"
_ALL: Final = slice(None)
_TORCH_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Weights(Protocol):
    """A model's tensors by checkpoint name, in the engine's dtype on the model's device."""

    def get(self, name: str, rows: slice = _ALL, columns: slice = _ALL) -> Tensor:
        """The tensor `name`, or some rows (first dimension) or columns (second) of it: a view where neither conversion
        nor copy is needed, so read-only by agreement."""

    def drop_pages(self) -> None:
        """What was fetched so far is in use elsewhere by now: its pages need not count as this process's memory."""

    def release(self) -> None:
        """Call when the model is built."""


class MappedWeights:
    """Tensors of a checkpoint's safetensors, mapped: nothing is copied unless its dtype changes.

    The mapping is private and writable, because torch refuses read-only buffers; nobody writes, so its pages stay the
    page cache's own, shared with every other process that maps the file.
    """

    def __init__(
        self,
        path: Path,
        model: ModelConfig,
        dtype: torch.dtype,
        on_progress: OnProgress,
        num_ranks: int = 1,
        device: torch.device = CPU,
    ) -> None:
        """One of `num_ranks` ranks reads its share, about as much as the others (for the progress only). Raises
        `CheckpointError` if the folder changed since the supervisor checked it."""
        self._stored = read_stored_tensors(path)
        check_stored(model, self._stored)
        self._dtype = dtype
        self._device = device
        self._files = {file: _map_file(path / file) for file in {tensor.file for tensor in self._stored.values()}}
        total_bytes = sum(self._stored[name].nbytes for name in weight_shapes(model))
        self._progress = _Progress(total_bytes // num_ranks, on_progress)

    def get(self, name: str, rows: slice = _ALL, columns: slice = _ALL) -> Tensor:
        stored = self._stored[name]
        whole = _as_tensor(self._files[stored.file], stored)
        part = whole[rows] if columns == _ALL else whole[rows, columns]
        self._progress.advance(part.nbytes)
        return part.to(self._device).to(self._dtype)

    def drop_pages(self) -> None:
        """The pages stay in the page cache. Tensors that are still views (an embedding table, say) fault in again
        those that they use."""
        for mapped in self._files.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def release(self) -> None:
        self.drop_pages()
        self._progress.finish()


class DummyWeights:
    """Random tensors that depend on the seed, their name and the kind of device only (`--load-format dummy`): speed
    without a download."""

    def __init__(
        self,
        model: ModelConfig,
        dtype: torch.dtype,
        seed: int,
        on_progress: OnProgress,
        num_ranks: int = 1,
        device: torch.device = CPU,
    ) -> None:
        self._shapes = weight_shapes(model)
        self._dtype = dtype
        self._seed = seed
        self._device = device
        total_bytes = sum(torch.Size(shape).numel() for shape in self._shapes.values()) * dtype.itemsize
        self._progress = _Progress(total_bytes // num_ranks, on_progress)

    def get(self, name: str, rows: slice = _ALL, columns: slice = _ALL) -> Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            whole = torch.ones(shape, dtype=self._dtype, device=self._device)
        else:
            generator = torch.Generator(self._device).manual_seed(self._seed ^ zlib.crc32(name.encode()))
            whole = torch.empty(shape, dtype=self._dtype, device=self._device).normal_(0.0, 0.02, generator=generator)
        part = whole[rows] if columns == _ALL else whole[rows, columns]
        self._progress.advance(part.nbytes)
        return part

    def drop_pages(self) -> None:
        """Nothing is mapped."""

    def release(self) -> None:
        self._progress.finish()


class _Progress:
    """Turns bytes into calls of `on_progress`, at most one per percent: each may become a message."""

    def __init__(self, total_bytes: int, on_progress: OnProgress) -> None:
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._done_bytes = 0
        self._percent = 0
        on_progress(STAGE, 0.0)

    def advance(self, nbytes: int) -> None:
        self._done_bytes += nbytes
        percent = min(99, self._done_bytes * 100 // self._total_bytes)
        if percent > self._percent:
            self._percent = percent
            self._on_progress(STAGE, percent / 100)

    def finish(self) -> None:
        self._on_progress(STAGE, 1.0)


def _map_file(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    mapped.madvise(mmap.MADV_WILLNEED)
    return mapped


def _as_tensor(mapped: mmap.mmap, stored: StoredTensor) -> Tensor:
    """A view of the mapping, which lives as long as the tensor does; a copy only of a misaligned tensor."""
    data = torch.frombuffer(mapped, dtype=torch.uint8, count=stored.nbytes, offset=stored.offset)
    dtype = _TORCH_DTYPES[stored.dtype]
    if stored.offset % dtype.itemsize:
        data = data.clone()
    return data.view(dtype).view(stored.shape)
