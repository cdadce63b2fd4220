"""What a simulated GPU's memory has room for beside a rank's weights and its largest step."""

import math
from typing import Final, NamedTuple

from msgspec.structs import replace

from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.structs import ModelConfig
from albireo.checkpoint.weight_shapes import weight_shapes
from albireo.config import Dtype
from albireo.sim.roofline import DTYPE_BYTES
from albireo.sim.spec import DeviceSpec

RESERVE_BYTES: Final = 1 << 30
"""For captured steps and for libraries: half a GiB each, as a GPU's worker reserves for the former."""


class RankMemory(NamedTuple):
    """Bytes of one device."""

    total: int
    weights: int
    """Of one rank, padding included; a tied embedding once."""
    step: int
    """Of the largest step: its activations and logits."""

    def room(self, utilization: float) -> int:
        """What is left for the KV cache; below 0 where there is none."""
        return int(self.total * utilization) - self.weights - self.step - RESERVE_BYTES

    def used(self, kv_cache_bytes: int) -> int:
        """With a KV cache of that size."""
        return self.weights + self.step + RESERVE_BYTES + kv_cache_bytes


def rank_memory(
    model: ModelConfig, num_ranks: int, dtype: Dtype, spec: DeviceSpec, max_num_seqs: int, max_num_batched_tokens: int
) -> RankMemory:
    """Raises CheckpointError where the model cannot be divided."""
    shard = shard_model(model, 0, num_ranks)
    local = replace(shard.local(model), vocab_size=shard.vocab.width)
    element = DTYPE_BYTES[dtype]
    weights = element * sum(math.prod(shape) for shape in weight_shapes(local).values())
    # live at once: the hidden state, the sum beside it, a product's input and its output, the widest of which are q/k/v
    # and gate/up
    widest = max((local.num_heads + 2 * local.num_kv_heads) * model.head_dim, 3 * local.intermediate_size)
    activations = max_num_batched_tokens * element * (3 * model.hidden_size + widest)
    logits = 2 * 4 * max_num_seqs * model.vocab_size  # whole rows, and beside them what is exchanged or sorted out
    return RankMemory(spec.memory_bytes, weights, activations + logits)
