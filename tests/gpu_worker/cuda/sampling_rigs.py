"""Samplers with small tiles, so that small rows have many, and the requests that they sample for."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from albireo.gpu_worker.cuda.row_masks import SharedMasks
from albireo.gpu_worker.cuda.sampler import CudaSampler
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm.layout import ADMISSION, LOGPROB

_SHARED_FIELDS = (
    "temperature", "top_p", "min_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "min_position",
)  # fmt: skip
SMALL: dict[str, int] = {"tile": 64, "block": 16, "choose_tile": 256, "capacity": 128}


def words_of(entries: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Records as the device holds them: int32 [n, 48]."""
    return torch.from_numpy(entries.view(np.int32).reshape(len(entries), -1).copy()).to(device)


def admissions_of(table: SamplingTable, device: torch.device) -> torch.Tensor:
    """The records of a table's slots."""
    entries = np.zeros(len(table.temperature), ADMISSION)
    for name in _SHARED_FIELDS:
        entries[name] = getattr(table, name)
    entries["seed"] = table.seed.view(np.uint64)
    return words_of(entries, device)


def make_sampler(
    admissions: torch.Tensor, max_rows: int, vocab: int, masks: SharedMasks | None = None, /, **settings: int
) -> CudaSampler:
    return CudaSampler(vocab, admissions, max_rows, 64, admissions.device, masks, **{**SMALL, **settings})


def sampled(
    sampler: CudaSampler,
    logits: torch.Tensor,
    slots: list[int] | NDArray[Any],
    positions: list[int] | NDArray[Any],
    alive: torch.Tensor | None = None,
) -> list[int]:
    """Tokens of rows whose slots are all alive, unless told otherwise."""
    device = logits.device
    rows = [torch.tensor(np.asarray(each), dtype=torch.int32, device=device) for each in (slots, positions)]
    if alive is None:
        alive = torch.ones(max(slots) + 1, dtype=torch.int32, device=device)
    out = torch.full((len(rows[0]),), -7, dtype=torch.int32, device=device)
    sampler.sample(logits, rows[0], alive, rows[1], out)
    tokens: list[int] = out.cpu().tolist()
    return tokens


def scored(sampler: CudaSampler, logits: torch.Tensor, targets: list[int], num_top: list[int]) -> NDArray[Any]:
    """`layout.LOGPROB` [n], at positions 40, 41, ..; bytes that nobody writes are -1."""
    device = logits.device
    out = torch.full((len(targets), LOGPROB.itemsize // 4), -1, dtype=torch.int32, device=device)
    asked, tops = (torch.tensor(each, dtype=torch.int32, device=device) for each in (targets, num_top))
    positions = torch.arange(40, 40 + len(targets), dtype=torch.int32, device=device)
    sampler.score(logits, asked, positions, tops, out)
    records: NDArray[Any] = out.cpu().numpy().view(LOGPROB).reshape(-1)
    return records
