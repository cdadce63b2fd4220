"""Log-probabilities on the GPU, bit for bit those of the definition."""

import math

import numpy as np
import pytest
import torch
from sampling_rigs import make_sampler, scored, words_of

from albireo.gpu_worker.sampling.adjust_oracle import logprobs, most_likely, rank
from albireo.limits import MAX_LOGPROBS
from albireo.messages import WAITED
from albireo.shm.layout import ADMISSION

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning", "ignore::RuntimeWarning"
)
INF, NAN = math.inf, math.nan


def check(logits: torch.Tensor, targets: list[int], num_top: list[int], device: torch.device, **settings: int) -> None:
    vocab = logits.shape[1]
    sampler = make_sampler(words_of(np.zeros(1, ADMISSION), device), 3, vocab, **settings)
    records = scored(sampler, logits.to(device), targets, num_top)
    assert records["position"].tolist() == list(range(40, 40 + len(targets)))
    for row, target, wanted, record in zip(logits.float().numpy(), targets, num_top, records, strict=True):
        expected, count = logprobs(row), min(wanted, vocab)
        likely = most_likely(row, count)
        assert record["token"] == target and record["num_top"] == count
        assert record["logprob"].view(np.int32) == expected[target].view(np.int32)
        assert record["rank"] == rank(row, target)
        assert record["top_ids"].tolist() == likely + [-1] * (MAX_LOGPROBS - count)
        assert record["top_logprobs"][:count].tobytes() == expected[likely].tobytes()
        assert not record["top_logprobs"][count:].any()
        assert record["slot"] == -1  # not the sampler's


@pytest.mark.parametrize(
    ("vocab", "scale", "is_bf16", "settings"),
    [
        (700, 4.0, True, {}),
        (700, 0.01, True, {"capacity": 16}),
        (1030, 2.0, False, {"target_programs": 4}),
        (7, 1, 0, {}),
    ],
)
def test_scores_are_those_of_the_definition(
    vocab: int, scale: float, is_bf16: bool, settings: dict[str, int], device: torch.device
) -> None:
    """More rows than the sampler has working memory for."""
    generator, n = np.random.default_rng(vocab), 7
    logits = torch.from_numpy((generator.standard_normal((n, vocab)) * scale).astype(np.float32))
    targets = generator.integers(0, vocab, n).tolist()
    check(logits.to(torch.bfloat16 if is_bf16 else torch.float32), targets, [0, 1, 20, 5, 3, 20, 2], device, **settings)


def test_rows_of_strange_logits_are_scored(device: torch.device) -> None:
    rows = [
        [NAN] * 70, [-INF] * 70, [0.0, -0.0] * 35, [1.0, INF] * 35, [-3e38, NAN] * 35,
        [3e38, -3e38, 1e-40, -1.0] * 17 + [2.0] * 2,
    ]  # fmt: skip
    for targets in ([0] * 6, [1] * 6, [69] * 6):
        check(torch.tensor(rows), targets, [4, 3, 5, 20, 6, 20], device)


def test_rows_without_a_target_are_left_alone(device: torch.device) -> None:
    sampler = make_sampler(words_of(np.zeros(1, ADMISSION), device), 3, 100)
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(1)).to(device)
    for none in (-1, WAITED):
        records = scored(sampler, logits, [none, 4], [2, 2])
        assert set(records[:1].view(np.int32).tolist()) == {-1, none}
        assert [record["token"] for record in records] == [none, 4]
