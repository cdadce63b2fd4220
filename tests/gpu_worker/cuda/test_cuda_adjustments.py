"""Penalties, bias, bad words and min_tokens on the GPU: against the definition, and over the life of slots."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from adjusted_slots import Slots, greedy, same
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1]))  # what the CPU's tests share
from admitted import VOCAB, requests

from albireo.gpu_worker.sampling.adjust_oracle import Adjustments, adjust_row

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning", "ignore::RuntimeWarning"
)


@settings(deadline=None, max_examples=15)
@given(st.lists(requests, min_size=4, max_size=4), st.integers(0, 2**32), st.booleans())
def test_rows_of_every_kind_are_adjusted_as_defined(batch: list[Adjustments], seed: int, is_bf16: bool) -> None:
    values = np.random.default_rng(seed).standard_normal((4, VOCAB)) * 5
    values[:, :6] = [0.0, np.inf, -np.inf, np.nan, 3e38, -1e-37]  # the interpreter reads tinier bf16 as 0
    logits = torch.from_numpy(values).to(torch.bfloat16 if is_bf16 else torch.float32)
    slots = Slots(4, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    slots.admit(dict(enumerate(batch)))
    expected = np.stack([adjust_row(logits[r].float().numpy(), request) for r, request in enumerate(batch)])
    assert same(slots.adjusted(logits, [0, 1, 2, 3]), expected)


def random_request(generator: np.random.Generator) -> Adjustments:
    """Asks for some of everything; few ids, so that words come true and tokens repeat."""

    def few(n: int) -> list[int]:
        ids: list[int] = generator.integers(0, 6, n).tolist()
        return ids

    asks = generator.random(5) < 0.5
    return Adjustments(
        prompt=few(4),
        output=few(int(generator.integers(0, 20))),
        bad_words=[few(int(n)) for n in generator.integers(1, 4, 6)] if asks[0] else [],
        stop_ids=few(3),
        min_tokens=25 if asks[1] else 0,
        logit_bias={i: float(generator.normal()) for i in range(5)} if asks[2] else {},
        repetition_penalty=1.3 if asks[3] else 1.0,
        frequency_penalty=0.5 if asks[4] else 0.0,
        presence_penalty=-0.25 if asks[4] else 0.0,
    )


@pytest.mark.slow
def test_sequences_grow_and_slots_are_reused(device: torch.device) -> None:
    """Every step adds a token to some sequences; now and then another request takes a slot."""
    generator, slots = np.random.default_rng(3), Slots(6, device)
    slots.admit({slot: random_request(generator) for slot in range(6)})
    for _ in range(12):
        chosen = generator.permutation(6)[:4].tolist()
        logits = torch.from_numpy(generator.standard_normal((4, VOCAB)).astype(np.float32))
        logits[:, :6] += 3
        expected = [
            greedy(adjust_row(logits[row].numpy(), slots.requests[slot])) for row, slot in enumerate(chosen)
        ]  # fmt: skip
        assert slots.sample(logits, chosen) == expected
        for slot, token in zip(chosen, expected, strict=True):
            slots.requests[slot].output = [*slots.requests[slot].output, token]
        slots.admit({int(generator.integers(0, 6)): random_request(generator)})


def test_rows_without_a_token_leave_the_history_alone(device: torch.device) -> None:
    slots = Slots(2, device)
    slots.admit({0: Adjustments(output=[1], presence_penalty=1.0, bad_words=[[1, 2]])})
    extras = slots.sampler._extras
    before = extras.counts.clone(), extras.recent.clone()
    rows = torch.tensor([[0, -1], [-1, 5]], dtype=torch.int32, device=device)
    slots.sampler.observe(rows[0], rows[1])
    assert torch.equal(extras.counts, before[0]) and torch.equal(extras.recent, before[1])


def test_counts_are_exact_to_32767_times_and_stay_there(device: torch.device) -> None:
    slots = Slots(1, device)
    request = Adjustments(prompt=[7], output=[7] * 32766, frequency_penalty=1.0)
    slots.admit({0: request})
    row = torch.tensor([0], dtype=torch.int32, device=device)
    counts = []
    for _ in range(3):
        slots.sampler.observe(row, row + 7)
        counts.append(int(slots.sampler._extras.counts[0, 7]) & 0xFFFF)
    assert counts == [2 * 32767 + 1] * 3


def test_the_longest_words_and_most_biases_fit(device: torch.device) -> None:
    slots = Slots(1, device)
    output = list(range(40))
    words = [[*output[-15:], 50], [*output[-15:-1], 38, 51], *([52, 53] for _ in range(125)), [60]]
    biases = {i: 1.0 + i / 8 for i in range(1024)}
    slots.admit({0: Adjustments(output=output, bad_words=words, logit_bias=biases)})
    logits = torch.zeros(1, VOCAB)
    assert same(slots.adjusted(logits, [0])[0], adjust_row(logits[0].numpy(), slots.requests[0]))
