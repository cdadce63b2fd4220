"""The sampler of `params` written for reading: one row at a time, a full sort. The tests' measure, never served."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from albireo.gpu_worker.sampling.interface import AdjustedRows
from albireo.gpu_worker.sampling.philox import gumbel, token_words
from albireo.gpu_worker.sampling.table import SamplingTable

_COEFFICIENTS = [math.log(2.0) ** k / math.factorial(k) for k in range(10)]
_ROUND = 1.5 * 2.0**52


def mass(gaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """floor(2^44 e^gap) for gaps <= 0, to a relative 1e-11.

    e^x = 2^n 2^r with n the integer nearest to x / log 2: 2^r by its Taylor series, 2^n by shifting the integer. Only
    additions and multiplications of float64, so every device that does not fuse them gets the same integer.
    """
    exponents = np.maximum(gaps * (1.0 / math.log(2.0)), -63.0)
    whole = (exponents + _ROUND) - _ROUND
    r = exponents - whole
    power = np.full_like(r, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        power = coefficient + r * power
    return (power * 2.0**44).astype(np.int64) >> (-whole).astype(np.int64)


def kept_tokens(
    logits: NDArray[np.float32], temperature: float, top_p: float, min_p: float, top_k: int
) -> NDArray[np.int64]:
    """Token ids that pass the filters, by falling logit and rising id. `logits` [vocab], the largest one finite."""
    order = np.argsort(-logits, kind="stable")
    values = logits[order].astype(np.float64)
    count = len(order)
    if min_p > 0.0:
        count = int(np.sum(values >= values[0] + temperature * math.log(min_p)))
    if top_k > 0:
        count = min(count, top_k)
    if top_p < 1.0:
        masses = mass((values[:count] - values[0]) * (1.0 / temperature))
        need = max(1, math.ceil(top_p * float(masses.sum())))
        count = 1 + int(np.sum(np.cumsum(masses) < need))
    return order[:count]


class OracleSampler:
    """A `params.Sampler` in plain numpy."""

    def sample(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        table: SamplingTable,
        out: torch.Tensor,
        adjusted: AdjustedRows | None = None,
    ) -> None:
        for row, slot, position in zip(range(len(out)), slots.tolist(), positions.tolist(), strict=True):
            values = logits[row].float().numpy()
            if adjusted is not None and adjusted.index[row] >= 0:
                values = adjusted.values[adjusted.index[row]]
            values = np.where(np.isnan(values), np.float32(-np.inf), values)
            out[row] = self._sample_row(values, slot, position, table)

    def _sample_row(self, logits: NDArray[np.float32], slot: int, position: int, table: SamplingTable) -> int:
        temperature = float(table.temperature[slot])
        if temperature == 0.0 or np.isinf(logits.max()):
            return int(logits.argmax())
        kept = kept_tokens(
            logits, temperature, float(table.top_p[slot]), float(table.min_p[slot]), int(table.top_k[slot])
        )
        ids = np.sort(kept)
        noise = gumbel(token_words(int(table.seed[slot]) % 2**64, position, len(logits)))
        scores = logits[ids].astype(np.float64) * (1.0 / temperature) + noise[ids]
        return int(ids[scores.argmax()])
