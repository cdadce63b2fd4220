"""A decoder cut into shares gives the logits of the whole one, however many ranks hold it."""

from pathlib import Path

import pytest
import torch
from checkpoints import Family, write_checkpoint
from paged_runner import MAX_LEN, PagedRunner
from thread_group import run_ranks
from torch import Tensor
from transformers import AutoModelForCausalLM

from albireo.checkpoint import read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.gpu_worker.attention.oracle import OracleAttention
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.cpu_backend import CpuBackend
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.weights import MappedWeights

PROMPT = [(7 * i * i + 3 * i) % 300 for i in range(1, 40)]


def sharded_logits(path: Path, size: int, prompt: list[int], steps: int) -> Tensor:
    """Logits of the prompt's last token and of `steps` greedy ones after it, put together from the ranks' shares."""
    config = read_checkpoint(path).model

    def work(collectives: Collectives) -> Tensor:
        torch.set_num_threads(1)
        shard = shard_model(config, collectives.rank, size)
        weights = MappedWeights(path, config, torch.float32, lambda stage, fraction: None, size)
        model = DecoderModel(
            config, shard, weights, torch.float32, OracleAttention(), collectives, MAX_LEN, CpuBackend()
        )
        weights.release()
        runner = PagedRunner(model)
        collected = []
        share = runner.prefill(0, prompt, 16)[-1:]
        for _ in range(steps + 1):
            gathered = collectives.all_gather(share.contiguous())
            collected.append(gathered.transpose(0, 1).reshape(-1)[: config.vocab_size])
            share = runner.step({0: [int(collected[-1].argmax())]})[0]
        return torch.stack(collected)

    results = run_ranks(size, work)
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("size", [2, 4])
def test_logits_of_two_and_four_ranks_are_those_of_transformers(tmp_path: Path, family: Family, size: int) -> None:
    path = write_checkpoint(tmp_path / family, family)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    logits = sharded_logits(path, size, PROMPT, 4)
    tokens = PROMPT + logits[:-1].argmax(-1).tolist()
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0, len(PROMPT) - 1 :]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
