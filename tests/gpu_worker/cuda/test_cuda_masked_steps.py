"""Whole steps of the device under grammars: masks that are late cost their row a step, and change no token."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driven_device import DrivenDevice, Prompt
from numpy.typing import NDArray

from albireo.config import SamplingMode, SchedulerConfig
from albireo.messages import WAITED, Finish

HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning", "ignore::RuntimeWarning"
)
CONFIG = SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=32, max_model_len=128, run_ahead=2)
GRAMMAR = {"has_grammar": 1, "num_logprobs": 0}
FREE = {"temperature": 1.0, "seed": 5, "top_p": 0.9}
LATE, BESIDE, OTHER = 0, 1, 2
"""Slots."""
PROMPT, OTHER_PROMPT = [5, 9, 200, 7, 31], [400, 3, 77]
P = len(PROMPT)
"""Position of its first output token."""


@pytest.fixture(scope="module")
def driven(make_checkpoint: Callable[..., Path]) -> DrivenDevice:
    return DrivenDevice(make_checkpoint("qwen3", num_hidden_layers=1), CONFIG)


def mask_of(position: int, vocab_size: int) -> NDArray[np.bool_]:
    """A third of the vocabulary, another one at each position."""
    mask: NDArray[np.bool_] = np.arange(vocab_size) % 3 == position % 3
    return mask


def in_time(driven: DrivenDevice, generation: int, count: int, **fields: Any) -> tuple[list[int], list[int]]:
    """`count` tokens of a constrained sequence whose masks are always there, and those of one beside it."""
    tokens: tuple[list[int], list[int]] = [], []
    prompts = [Prompt(LATE, generation, PROMPT, GRAMMAR | fields), Prompt(BESIDE, generation, OTHER_PROMPT, FREE)]
    for position in range(P, P + count):
        driven.publish(LATE, generation, position, mask_of(position, driven.vocab_size))
        step = driven.step(prompts=prompts) if position == P else driven.step([LATE, BESIDE])
        for whose, token in zip(tokens, step, strict=True):
            whose.append(token)
    return tokens


def check_late_masks(driven: DrivenDevice) -> None:
    """Of a prompt's first token, of a decode step, and of a decode row in a step with a prompt."""
    expected, free = in_time(driven, 1, 3)
    assert all(mask_of(P + i, driven.vocab_size)[token] for i, token in enumerate(expected))
    beside: list[int] = []

    def step(rows: list[int], *prompts: Prompt) -> int:
        """The constrained row's token."""
        tokens = driven.step(rows, prompts)
        beside.append(tokens[1])
        return tokens[0]

    def publish(position: int) -> None:
        driven.publish(LATE, 2, position, mask_of(position, driven.vocab_size))

    first = step([], Prompt(LATE, 2, PROMPT, GRAMMAR), Prompt(BESIDE, 2, OTHER_PROMPT, FREE))
    assert first == WAITED and not driven.logprobs.size
    assert step([LATE, BESIDE]) == WAITED, "and again"
    publish(P)
    assert step([LATE, BESIDE]) == expected[0]
    assert [(record["position"], record["token"]) for record in driven.logprobs] == [(P, expected[0])]
    assert step([LATE, BESIDE], Prompt(OTHER, 2, OTHER_PROMPT)) == WAITED, "the mask of the token before is no help"
    publish(P + 1)
    assert step([LATE, BESIDE], Prompt(OTHER, 3, OTHER_PROMPT)) == expected[1]
    assert [(record["position"], record["token"]) for record in driven.logprobs] == [(P + 1, expected[1])]
    publish(P + 2)
    assert step([LATE, BESIDE]) == expected[2]
    assert beside[:3] == free, "the other stream goes on"


def test_late_masks_cost_a_step_and_change_no_token(driven: DrivenDevice) -> None:
    check_late_masks(driven)


@pytest.mark.skipif(HAS_GPU, reason="the ranks are threads of one process, and a GPU's stream is one thread's")
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gathered", "sequence-parallel"])
def test_late_masks_change_no_token_on_two_ranks(make_checkpoint: Callable[..., Path], mode: SamplingMode) -> None:
    check_late_masks(DrivenDevice(make_checkpoint("qwen3", num_hidden_layers=1), CONFIG, 2, mode))


def test_a_row_that_ended_waits_for_nothing(driven: DrivenDevice) -> None:
    eos = 8
    ends = {"stop_ids": [eos] + [0] * 15, "num_eos_ids": 1}
    driven.publish(LATE, 10, P, np.arange(driven.vocab_size) == eos)
    driven.launch(prompts=[Prompt(LATE, 10, PROMPT, GRAMMAR | ends)])
    assert driven.collect() == [(LATE, eos, Finish.EOS)]
    driven.launch([LATE])
    assert driven.collect() == [(LATE, -1, Finish.NONE)]


def test_a_slot_s_next_owner_does_not_take_the_masks_of_the_one_before(driven: DrivenDevice) -> None:
    driven.publish(LATE, 20, P, np.ones(driven.vocab_size, np.bool_))
    assert driven.step(prompts=[Prompt(LATE, 20, PROMPT, GRAMMAR)])[0] >= 0
    driven.publish(LATE, 20, P + 1, np.ones(driven.vocab_size, np.bool_))
    assert driven.step(prompts=[Prompt(LATE, 21, [*PROMPT, 4], GRAMMAR)]) == [WAITED]
    assert driven.step(prompts=[Prompt(LATE, 22, PROMPT)])[0] >= 0, "and one without a grammar needs none"


@pytest.mark.gpu if HAS_GPU else pytest.mark.slow
def test_masks_are_published_while_captured_steps_run(driven: DrivenDevice) -> None:
    """Three steps in flight, like the coordinator; a thread publishes each mask some time after the token before."""
    count = 100 if HAS_GPU else 6
    expected, free = in_time(driven, 30, count)
    tokens: list[int] = []
    beside: list[int] = []
    done = threading.Event()

    def write() -> None:
        delays = np.random.default_rng(0).exponential(300e-6, count)
        for number in range(count):
            while len(tokens) < number and not done.is_set():
                time.sleep(0)
            time.sleep(delays[number])
            driven.publish(LATE, 31, P + number, mask_of(P + number, driven.vocab_size))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        num_waits = run_ahead(driven, tokens, beside, count)
    finally:
        done.set()
        writer.join()
    assert tokens == expected
    assert beside[:count] == free[: len(beside)]
    assert num_waits > 0, "the steps in flight when a mask came had found none"


def run_ahead(driven: DrivenDevice, tokens: list[int], beside: list[int], count: int) -> int:
    """Appends what the two streams sample until the constrained one has `count` tokens; how often it has waited."""
    driven.launch(prompts=[Prompt(LATE, 31, PROMPT, GRAMMAR), Prompt(BESIDE, 31, OTHER_PROMPT, FREE)])
    in_flight = num_beside = 1
    num_waits, end = 0, time.monotonic() + 120
    while in_flight:
        while in_flight < 3 and len(tokens) < count:
            is_beside = num_beside < 100  # longer than the other, short enough for the model
            driven.launch([LATE, BESIDE] if is_beside else [LATE])
            in_flight += 1
            num_beside += is_beside
        late, *others = driven.collect()
        in_flight -= 1
        beside += [other.token for other in others]
        if late.token == WAITED:
            num_waits += 1
        elif len(tokens) < count:
            tokens.append(late.token)
        assert time.monotonic() < end, "no mask comes any more"
    return num_waits
