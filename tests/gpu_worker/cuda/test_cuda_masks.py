"""Grammar masks on the GPU: a row samples what its mask allows, or waits; nobody else is touched."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adjusted_slots import Slots, WrittenMasks, greedy, masked, same, words_of_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))  # what the CPU's tests share
from admitted import VOCAB, position_of, requests
from thread_group import ThreadGroup

from albireo.gpu_worker.cuda import row_masks
from albireo.gpu_worker.cuda.rank_samplers import make_step_sampler
from albireo.gpu_worker.sampling.adjust_oracle import Adjustments, adjust_row
from albireo.messages import WAITED
from albireo.shm.grammar_masks import mask_tag

HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning", "ignore::RuntimeWarning"
)
NUM_SLOTS = 4


@pytest.fixture(scope="module")
def written(device: torch.device) -> WrittenMasks:
    return WrittenMasks(NUM_SLOTS, device)


@pytest.fixture
def masks(written: WrittenMasks) -> Iterator[WrittenMasks]:
    written.table.tags[:] = 0
    yield written


def random_mask(generator: np.random.Generator, share: float) -> NDArray[np.bool_]:
    allowed = generator.random(VOCAB) < share
    allowed[generator.integers(VOCAB)] = True
    return allowed


def random_logits(generator: np.random.Generator, n: int = NUM_SLOTS) -> torch.Tensor:
    return torch.from_numpy((generator.standard_normal((n, VOCAB)) * 5).astype(np.float32))


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(
    st.lists(requests, min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    st.sets(st.integers(0, NUM_SLOTS - 1)),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_rows_are_masked_before_everything_else(
    written: WrittenMasks, batch: list[Adjustments], constrained: set[int], share: float, seed: int, is_bf16: bool
) -> None:
    """Whatever else is asked for; rows in another order than their slots, and rows without a grammar as ever."""
    generator = np.random.default_rng(seed)
    logits = random_logits(generator)
    logits[:, :4] = torch.tensor([0.0, np.inf, -np.inf, np.nan])
    logits = logits.to(torch.bfloat16 if is_bf16 else torch.float32)
    slots = Slots(NUM_SLOTS, torch.device("cuda" if HAS_GPU else "cpu"), written.shared)
    slots.admit(dict(enumerate(batch)), constrained)
    order = generator.permutation(NUM_SLOTS).tolist()
    allowed = {}
    for row, slot in enumerate(order):
        mask = random_mask(generator, share)  # for all of them: the others' is not looked at
        written.publish(slot, slot + 1, position_of(batch[slot]), mask)
        if slot in constrained:
            allowed[row] = mask
    expected = [adjust_row(values, batch[slot]) for values, slot in zip(masked(logits, allowed), order, strict=True)]
    assert same(slots.adjusted(logits, order), np.stack(expected))


def test_a_row_samples_among_what_its_mask_allows(masks: WrittenMasks, device: torch.device) -> None:
    generator = np.random.default_rng(1)
    slots = Slots(NUM_SLOTS, device, masks.shared)
    slots.admit({slot: Adjustments() for slot in range(NUM_SLOTS)}, [0, 2])
    for _ in range(5):
        logits = random_logits(generator)
        allowed = {slot: random_mask(generator, 0.02) for slot in (0, 2)}
        for slot, mask in allowed.items():
            masks.publish(slot, slot + 1, 0, mask)
        expected = [greedy(row) for row in masked(logits, allowed)]
        assert slots.sample(logits, [0, 1, 2, 3]) == expected


@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_no_bias_brings_back_what_a_mask_excludes(masks: WrittenMasks, device: torch.device, penalty: float) -> None:
    slots = Slots(1, device, masks.shared)
    biases = dict.fromkeys(range(0, VOCAB, 7), 100.0)
    slots.admit({0: Adjustments(prompt=[0, 1, 7], logit_bias=biases, repetition_penalty=penalty)}, [0])
    logits, mask = random_logits(np.random.default_rng(8), 1), np.arange(VOCAB) % 3 == 1
    masks.publish(0, 1, 3, mask)
    expected = adjust_row(masked(logits, {0: mask})[0], slots.requests[0])
    assert same(slots.adjusted(logits, [0])[0], expected)
    assert mask[greedy(expected)]


def test_a_mask_of_another_position_or_owner_does_not_count(masks: WrittenMasks, device: torch.device) -> None:
    generator, mask = np.random.default_rng(2), np.ones(VOCAB, np.bool_)
    slots = Slots(NUM_SLOTS, device, masks.shared)
    slots.admit({0: Adjustments(prompt=[1] * 7), 1: Adjustments()}, [0])
    logits = random_logits(generator, 2)
    free = greedy(logits[1].numpy())
    for tag in (0, 7, mask_tag(1, 6), mask_tag(1, 8), mask_tag(0, 7), mask_tag(2, 7), mask_tag(2**32 - 1, 7)):
        masks.publish(0, tag >> 32, tag & 0xFFFFFFFF, mask)
        assert slots.sample(logits, [0, 1]) == [WAITED, free], tag
    masks.publish(0, 1, 7, mask)
    assert slots.sample(logits, [0, 1]) == [greedy(logits[0].numpy()), free]


def test_generations_count_to_2_to_the_32(masks: WrittenMasks, device: torch.device) -> None:
    slots = Slots(1, device, masks.shared)
    slots.admit({0: Adjustments()}, [0])
    slots.admissions[0, 1] = -2  # 2^32 - 2 as int32
    masks.publish(0, 2**32 - 2, 0, np.arange(VOCAB) == 77)
    assert slots.sample(random_logits(np.random.default_rng(3), 1), [0]) == [77]


def test_ended_rows_and_padding_wait_for_no_mask(masks: WrittenMasks, device: torch.device) -> None:
    slots = Slots(NUM_SLOTS, device, masks.shared)
    slots.admit({slot: Adjustments() for slot in range(NUM_SLOTS)}, range(NUM_SLOTS))
    alive = torch.tensor([1, 0, 1, 0], dtype=torch.int32, device=device)
    rows = torch.tensor([0, -1, 1, 2], dtype=torch.int32, device=device)
    masks.publish(2, 3, 0, np.arange(VOCAB) == 5)
    masks.publish(1, 2, 0, np.arange(VOCAB) == 6)
    tokens = torch.full_like(rows, -7)
    logits = random_logits(np.random.default_rng(4)).to(device)
    slots.sampler.draw(logits, slots.sampler.masks.take(rows, alive, rows * 0), alive, rows * 0, tokens)
    assert tokens.tolist() == [WAITED, -1, -1, 5]


def test_waiting_leaves_counts_and_newest_tokens_as_they_are(masks: WrittenMasks, device: torch.device) -> None:
    slots = Slots(1, device, masks.shared)
    slots.admit({0: Adjustments(output=[1], presence_penalty=1.0, bad_words=[[1, 2]])}, [0])
    before = [each.clone() for each in (slots.sampler._extras.counts, slots.sampler._extras.recent)]
    assert slots.sample(random_logits(np.random.default_rng(5), 1), [0]) == [WAITED]
    assert torch.equal(slots.sampler._extras.counts, before[0])
    assert torch.equal(slots.sampler._extras.recent, before[1])


def test_a_mask_wider_than_one_look_is_taken_in_several(
    masks: WrittenMasks, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_masks, "MOST_WORDS", 4)
    generator = np.random.default_rng(6)
    slots = Slots(NUM_SLOTS, device, masks.shared)
    slots.admit({3: Adjustments()}, [3])
    logits, mask = random_logits(generator, 1), random_mask(generator, 0.01)
    masks.publish(3, 4, 0, mask)
    assert slots.sample(logits, [3]) == [greedy(masked(logits, {0: mask})[0])]


@pytest.mark.skipif(HAS_GPU, reason="the moment is one between two of the interpreter's loads")
def test_a_mask_that_is_written_over_while_it_is_read_does_not_count(
    masks: WrittenMasks, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every order of the writer's three stores and the reader's three loads, a row waits or has the whole mask."""
    from triton.runtime.interpreter import InterpreterBuilder

    load = InterpreterBuilder.create_masked_load
    actions: list[list[Callable[[], None]]] = []

    def load_and_act(builder: Any, *arguments: Any) -> Any:
        loaded = load(builder, *arguments)
        if arguments[-1] and actions:  # volatile: a tag, words, a tag
            for act in actions.pop(0):
                act()
        return loaded

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", load_and_act)
    slots = Slots(1, device, masks.shared)
    slots.admit({0: Adjustments()}, [0])
    old, new = np.arange(VOCAB) % 2 == 0, np.arange(VOCAB) % 2 == 1
    table = masks.table

    def write_words(part: slice) -> None:
        table.masks[0, part] = words_of_mask(new)[part]

    writes: list[Callable[[], None]] = [
        partial(table.clear, 0), partial(write_words, slice(0, 5)), partial(write_words, slice(5, None)),
        partial(table.publish, 0, mask_tag(1, 1)),
    ]  # fmt: skip
    tokens = {}
    for cuts in combinations_with_replacement(range(len(writes) + 1), 3):
        masks.publish(0, 1, 0, old)
        for write in writes[: cuts[0]]:
            write()
        actions[:] = [writes[start:end] for start, end in pairwise((*cuts, len(writes)))]
        tokens[cuts] = slots.sample(torch.zeros(1, VOCAB), [0])[0]
        actions.clear()
        taken = slots.sampler.masks.allowed[0, : table.masks.shape[1]].numpy()
        assert tokens[cuts] == WAITED or np.array_equal(taken, words_of_mask(old)), cuts
    assert [cuts for cuts, token in tokens.items() if token == 0] == [(0, 0, 0)], "the writer came after both looks"


@pytest.mark.skipif(HAS_GPU, reason="the ranks are threads of one process, and a GPU's stream is one thread's")
@pytest.mark.parametrize(
    ("mode", "expected"),
    [("gathered", [9, WAITED, WAITED, WAITED]), ("sequence-parallel", [9, WAITED, 9, WAITED])],
)
def test_ranks_agree_on_who_waits(mode: Any, expected: list[int], device: torch.device) -> None:
    """Slot 0's mask is there for both ranks, slot 1's for the second alone, slot 2's too, slot 3's for none. The first
    rank samples rows 0 and 1 where each has its slice, the second the others."""
    group, logits = ThreadGroup(2), random_logits(np.random.default_rng(7))

    def sample(rank: int) -> list[int]:
        masks = WrittenMasks(NUM_SLOTS, device)
        for slot in (0, 1, 2)[: 1 + 2 * rank]:
            masks.publish(slot, slot + 1, 0, np.arange(VOCAB) == 9)
        slots = Slots(NUM_SLOTS, device, masks.shared)
        slots.admit({slot: Adjustments() for slot in range(NUM_SLOTS)}, range(NUM_SLOTS))
        sampler = make_step_sampler(mode, slots.sampler, group.collectives[rank], VOCAB)
        half = VOCAB // 2
        rows = torch.arange(NUM_SLOTS, dtype=torch.int32)
        tokens = torch.full_like(rows, -7)
        share = logits[:, rank * half : (rank + 1) * half]
        sampler.sample(share, rows, torch.ones_like(rows), rows * 0, tokens)
        chosen: list[int] = tokens.tolist()
        return chosen

    assert group.run(sample) == [expected, expected]
