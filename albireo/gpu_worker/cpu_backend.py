"""The CPU's parts of a model: packed weights and compiled kernels where they fit, torch calls otherwise."""

import torch
from torch import Tensor

from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.backend import LayerOps, Linear
from albireo.gpu_worker.layer_ops import KernelLayerOps, make_layer_ops
from albireo.gpu_worker.layers import make_linear
from albireo.gpu_worker.models.decoder import DecoderModel


class CpuBackend:
    """`backend.Backend` for the CPU."""

    device = torch.device("cpu")

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return make_linear(weight, bias)

    def layer_ops(self, config: ModelConfig, table: Tensor, dtype: torch.dtype, attention: Attention) -> LayerOps:
        return make_layer_ops(config, table, dtype, attention)


def is_capturable(model: DecoderModel) -> bool:
    """Whether the model's `run_layers` and `compute_logits` of up to `max_rows()` rows are kernels alone."""
    return (
        model.num_ranks == 1
        and isinstance(model.attention, CpuAttention)
        and isinstance(model.ops, KernelLayerOps)
        and all(linear.is_kernel for linear in model.linears)
    )
