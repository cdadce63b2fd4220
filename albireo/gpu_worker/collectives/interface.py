"""What ranks of one tensor-parallel group do together. Models and samplers know only this.

Every rank calls the same operations with the same shapes in the same order. Results are bit-identical on all ranks:
ranks that disagree in one bit would soon disagree on a token. Not for two threads at once.
"""

from typing import Protocol

import torch
from torch import Tensor


class GroupClosedError(Exception):
    """A rank has left the group: an operation that waits for it can never end."""


class Collectives(Protocol):
    """One rank's end of the group."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    received_bytes: int
    """Payload that has come from other ranks so far, by the shapes: what a link would have had to carry to this rank
    by the plain algorithm (all-gather and all-to-all: the other ranks' parts; all-reduce: 2 (t - 1) / t of the
    tensor)."""

    def all_reduce(self, partial: Tensor, residual: Tensor | None = None) -> Tensor:
        """The sum of all ranks' `partial`, plus `residual` (the same on every rank) if given: a new tensor or
        `partial` itself, overwritten. float32 or bfloat16, any shape, contiguous; bfloat16 is added up in float32
        and rounded once where the implementation can."""

    def all_gather(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        """All ranks' `part` (any dtype and shape, contiguous, equal on all ranks) as `[size, *shape]`: in `out`, if
        given, or new."""

    def all_to_all(self, parts: Tensor, out: Tensor | None = None) -> Tensor:
        """`parts[r]` goes to rank r: `[size, ...]`, contiguous -> `[size, ...]` whose row r came from rank r: in
        `out`, if given, or new."""

    def close(self) -> None:
        """Leaves the group. The others' next operation fails or never ends."""


class Alone:
    """The group of one rank: nothing moves."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.received_bytes = 0

    def all_reduce(self, partial: Tensor, residual: Tensor | None = None) -> Tensor:
        return partial if residual is None else residual + partial

    def all_gather(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        return part.unsqueeze(0) if out is None else out.copy_(part.unsqueeze(0))

    def all_to_all(self, parts: Tensor, out: Tensor | None = None) -> Tensor:
        return parts if out is None else out.copy_(parts)

    def close(self) -> None:
        """Nothing to leave."""


def as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's memory as uint8 [nbytes]: what collectives that only move data work on. Must be contiguous."""
    assert tensor.is_contiguous(), "collectives take contiguous tensors"
    return tensor.view(-1).view(torch.uint8)
