"""A sampler and requests in its slots, whose rows are looked at as they are sampled from."""

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sampling_rigs import make_sampler, words_of

sys.path.append(str(Path(__file__).parents[1]))  # what the CPU's tests share
from admitted import VOCAB, has_penalties, plan_of, position_of

from albireo.gpu_worker.cuda.row_masks import SharedMasks, map_masks
from albireo.gpu_worker.cuda.runtime import CudaRuntime, HostRuntime
from albireo.gpu_worker.cuda.sampler import CudaSampler
from albireo.gpu_worker.sampling.adjust_oracle import Adjustments
from albireo.shm import segment
from albireo.shm.grammar_masks import GrammarMasks, MaskTable, mask_tag
from albireo.shm.layout import ADMISSION

Masks = dict[int, NDArray[np.bool_]]
"""By slot: which tokens may come, [VOCAB]."""


class WrittenMasks:
    """The segment: as it is written, and as the device sees it."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        geometry = GrammarMasks(num_slots, VOCAB)
        fd = segment.create("grammar", geometry.size)
        geometry.initialise(fd)
        self.table: MaskTable = geometry.attach(fd)
        shared = map_masks(CudaRuntime(0) if device.type == "cuda" else HostRuntime(), fd, num_slots, VOCAB)
        assert shared is not None
        self.shared: SharedMasks = shared
        os.close(fd)

    def publish(self, slot: int, generation: int, position: int, allowed: NDArray[np.bool_]) -> None:
        self.table.clear(slot)
        self.table.masks[slot] = words_of_mask(allowed)
        self.table.publish(slot, mask_tag(generation, position))


def words_of_mask(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Token i is bit i % 32 of word i // 32; tokens past the vocabulary may come, which nobody must read."""
    bits = np.append(allowed, np.ones(-allowed.size % 32, np.bool_))
    return np.packbits(bits, bitorder="little").view("<i4")


class Slots:
    """A sampler and requests in its slots, all greedy. Slot s is owned as generation s + 1."""

    def __init__(self, num_slots: int, device: torch.device, masks: SharedMasks | None = None) -> None:
        self.admissions = words_of(np.zeros(num_slots, ADMISSION), device)
        self.sampler: CudaSampler = make_sampler(
            self.admissions, num_slots, VOCAB, masks, target_programs=3 * num_slots
        )
        self.requests: dict[int, Adjustments] = {}
        self.constrained: set[int] = set()

    def admit(self, batch: dict[int, Adjustments], constrained: Collection[int] = ()) -> None:
        entries, extras = plan_of(batch)
        entries["generation"] = entries["slot"] + 1
        entries["has_grammar"] = [slot in constrained for slot in batch]
        self.sampler.admit(entries, extras)
        for slot, words in zip(entries["slot"], words_of(entries, self.admissions.device), strict=True):
            self.admissions[int(slot)] = words
        self.requests |= batch
        self.constrained = (self.constrained - batch.keys()) | set(constrained)

    def sample(self, logits: torch.Tensor, slots: list[int]) -> list[int]:
        device = self.admissions.device
        positions = [position_of(self.requests[slot]) for slot in slots]
        rows = [torch.tensor(each, dtype=torch.int32, device=device) for each in (slots, positions, slots)]
        self.sampler.sample(logits.to(device), rows[0], torch.ones_like(self.admissions[:, 0]), rows[1], rows[2])
        self.sampler.observe(rows[0], rows[2])
        tokens: list[int] = rows[2].tolist()
        return tokens

    def adjusted(self, logits: torch.Tensor, slots: list[int]) -> NDArray[np.float32]:
        """Rows as they are sampled from: float32 [n, VOCAB]."""
        self.sample(logits, slots)
        values = logits.float().numpy().copy()
        for row, slot in enumerate(slots):
            request = self.requests[slot]
            below = len(request.output) < request.min_tokens
            has_grammar = slot in self.constrained
            if has_penalties(request) or request.logit_bias or request.bad_words or below or has_grammar:
                values[row] = self.sampler._adjusted[row].cpu().numpy()
        return values


def greedy(row: NDArray[np.float32]) -> int:
    return int(np.where(np.isnan(row), -np.inf, row).argmax())


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Bit for bit, but for what is nowhere told apart: NaN and -inf, and the sign of zeros."""
    x, y = ((np.where(np.isnan(each), np.float32(-np.inf), each) + np.float32(0)).view(np.int32) for each in (a, b))
    return bool(np.array_equal(x, y))


def masked(logits: torch.Tensor, masks: dict[int, Any]) -> NDArray[np.float32]:
    """What step A begins with: -inf where the row's mask has no bit."""
    values = logits.float().numpy().copy()
    for row, allowed in masks.items():
        values[row, ~allowed] = -np.inf
    return values
