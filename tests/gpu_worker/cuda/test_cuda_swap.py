"""Whole blocks between a KV cache and host memory by the GPU's kernel."""

import numpy as np
import pytest
import torch

from albireo.gpu_worker.cuda.kernels.copy_blocks import LANES, copy_blocks


@pytest.mark.parametrize("block_words", [64, 1024, 1536])
def test_blocks_are_copied_by_either_column(device: torch.device, block_words: int) -> None:
    generator = np.random.default_rng(3)
    cache = torch.from_numpy(generator.integers(0, 1000, (6, block_words), dtype=np.int32)).to(device)
    space = torch.zeros(5, block_words, dtype=torch.int32, pin_memory=device.type == "cuda")
    copies = torch.tensor([[4, 1], [0, 3]], dtype=torch.int32, device=device)
    grid = (2, -(-block_words // int(LANES.value)))
    copy_blocks[grid](cache, space, copies, FROM=0, BLOCK_WORDS=block_words)
    back = torch.zeros_like(cache)
    copy_blocks[grid](space, back, copies, FROM=1, BLOCK_WORDS=block_words)
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert torch.equal(space[[1, 3]], cache[[4, 0]].cpu())
    assert not space[[0, 2, 4]].any()
    assert torch.equal(back[[0, 4]], cache[[0, 4]])
    assert not back[[1, 2, 3, 5]].any()
