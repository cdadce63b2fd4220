"""Batches of rows for the samplers' tests: tables, logits of every kind, and a sampler's tokens."""

import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from albireo.gpu_worker.sampling.cpu import CpuSampler
from albireo.gpu_worker.sampling.interface import AdjustedRows
from albireo.gpu_worker.sampling.params import Sampler
from albireo.gpu_worker.sampling.table import SamplingTable

DTYPES = (torch.float32, torch.bfloat16)
INF, NAN = math.inf, math.nan

special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 7.5, -80.0, 1e-40, 3e38, -3e38, INF, -INF, NAN])
rows_of_logits = st.one_of(
    st.lists(st.one_of(special, st.floats(width=32)), min_size=1, max_size=300),
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=300),
    st.tuples(st.integers(1, 700), st.sampled_from([0.01, 1.0, 6.0]), st.integers(0, 2**32)).map(
        lambda drawn: (np.random.default_rng(drawn[2]).standard_normal(drawn[0]) * drawn[1]).tolist()
    ),
)
slot_parameters = st.tuples(
    st.one_of(st.sampled_from([0.0, 0.8, 1.0, 1e-30, 1e-45, 2.0]), st.floats(0.0078125, 2.0, width=32)),
    st.one_of(st.sampled_from([1.0, 0.95, 1e-6]), st.floats(0.0078125, 1.0, width=32)),
    st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0.0, 1.0, width=32)),
    st.one_of(st.sampled_from([0, 1, 2, 2**31 - 1]), st.integers(0, 400)),
    st.integers(0, 2**64 - 1),
)


def make_table(
    temperature: list[float],
    top_p: list[float] | float = 1.0,
    min_p: list[float] | float = 0.0,
    top_k: list[int] | int = 0,
    seed: list[int] | int = 1,
    max_model_len: int = 1,
) -> SamplingTable:
    """One slot per temperature; the rest given per slot or for all."""
    table = SamplingTable(len(temperature), max_model_len)
    table.temperature[:], table.top_p[:], table.min_p[:], table.top_k[:] = temperature, top_p, min_p, top_k
    table.seed.view(np.uint64)[:] = seed
    return table


def draw(
    logits: torch.Tensor,
    table: SamplingTable,
    slots: list[int] | None = None,
    positions: list[int] | None = None,
    sampler: Sampler | None = None,
    adjusted: AdjustedRows | None = None,
) -> list[int]:
    """The tokens of each row; slot and position r for row r unless told otherwise."""
    rows = list(range(len(logits)))
    out = torch.full((len(rows),), -7, dtype=torch.int32)
    (sampler or CpuSampler(logits.shape[1])).sample(
        logits,
        torch.tensor(rows if slots is None else slots, dtype=torch.int32),
        torch.tensor(rows if positions is None else positions, dtype=torch.int64),
        table,
        out,
        adjusted,
    )
    tokens: list[int] = out.tolist()
    return tokens


def random_table(n_slots: int, generator: np.random.Generator) -> SamplingTable:
    """Slots of every kind: greedy, plain, each filter alone and combined."""

    def some(values: NDArray[Any], off: float) -> list[Any]:
        return [value if generator.random() < 0.5 else off for value in values.tolist()]

    return make_table(
        temperature=some(generator.uniform(0.05, 2.0, n_slots), 0.8 if generator.random() < 0.7 else 0.0),
        top_p=some(generator.uniform(0.01, 1.0, n_slots), 1.0),
        min_p=some(generator.uniform(0.0, 0.3, n_slots), 0.0),
        top_k=some(generator.integers(1, 200, n_slots), 0),
        seed=generator.integers(0, 2**64, n_slots, dtype=np.uint64).tolist(),
    )
