"""Run-ahead changes when steps are planned, never what they say."""

from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from pipeline import Pipeline

from albireo.config import SchedulerConfig
from albireo.messages import Finish, SamplingParams

EOS = (100, 101, 102, 103, 104, 105)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a small vocabulary, so that sampled EOS and stop ids come soon
    return write_checkpoint(tmp_path_factory.mktemp("run-ahead") / "qwen3", "qwen3")


def run(path: Path, run_ahead: int, num_blocks: int, num_swap_blocks: int = 0) -> list[tuple[list[int], Finish]]:
    config = SchedulerConfig(
        max_num_seqs=8,
        max_num_batched_tokens=48,
        max_model_len=256,
        block_size=16,
        run_ahead=run_ahead,
        num_swap_blocks=num_swap_blocks,
        enable_prefix_caching=not num_swap_blocks,  # which would have the blocks still
    )
    pipeline = Pipeline(path, config, num_blocks, eos=EOS)
    for seed in range(24):
        sampling = SamplingParams(
            max_tokens=5 + 3 * seed,
            temperature=(0.0, 0.7, 1.5, 2.0)[seed % 4],
            top_p=(1.0, 0.9)[seed % 2],
            top_k=(0, 40, 0)[seed % 3],
            min_p=(0.0, 0.0, 0.01)[seed % 3],
            seed=seed,
            stop_token_ids=tuple(range(200 + seed, 206 + seed)),
            ignore_eos=seed % 5 == 0,
        )
        pipeline.submit([(seed * i) % 300 for i in range(1, 2 + 5 * seed)], sampling)
    pipeline.run()
    assert (pipeline.scheduler.swap.num_swapped_in > 0) == (num_swap_blocks > 0)
    return [(result.tokens, result.finish) for result in pipeline.results.values()]


def test_tokens_are_the_same_for_every_run_ahead_and_through_preemptions(path: Path) -> None:
    synchronous = run(path, run_ahead=0, num_blocks=200)
    assert {finish for _, finish in synchronous} == {Finish.EOS, Finish.STOP_TOKEN, Finish.LENGTH}
    for run_ahead in (1, 2, 4):
        assert run(path, run_ahead, num_blocks=200) == synchronous
        assert run(path, run_ahead, num_blocks=20) == synchronous
        assert run(path, run_ahead, num_blocks=20, num_swap_blocks=24) == synchronous
