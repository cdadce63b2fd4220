"""A worker that takes a dead one's place: step numbers go on, and it knows of none before its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from driven_device import DrivenDevice, Prompt

from albireo.config import SchedulerConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning", "ignore::RuntimeWarning"
)
CONFIG = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=32, max_model_len=64, run_ahead=2)


def test_a_worker_that_begins_in_the_middle_of_the_rings_runs_the_plans_that_it_is_given(
    make_checkpoint: Callable[..., Path],
) -> None:
    checkpoint = make_checkpoint("qwen3", num_hidden_layers=1)
    first, successor = DrivenDevice(checkpoint, CONFIG), DrivenDevice(checkpoint, CONFIG, num_steps_before=5)
    outputs = [
        [*device.step(prompts=[Prompt(0, 1, [5, 9, 200, 7])]), *(device.step([0])[0] for _ in range(5))]
        for device in (first, successor)
    ]
    assert outputs[0] == outputs[1]
