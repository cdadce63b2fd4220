"""The GPU's parts of a model."""

import torch
from torch import Tensor

from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.backend import LayerOps, Linear
from albireo.gpu_worker.cuda.layer_ops import TritonLayerOps
from albireo.gpu_worker.cuda.linear import SKINNY_ROWS, CudaLinear


class CudaBackend:
    """`backend.Backend` for one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        # in Triton's interpreter a product takes seconds, and has tests of its own
        return CudaLinear(weight, bias, skinny_rows=SKINNY_ROWS if weight.is_cuda else 0)

    def layer_ops(self, config: ModelConfig, table: Tensor, dtype: torch.dtype, attention: Attention) -> LayerOps:
        return TritonLayerOps(config, table.to(self.device), dtype)
