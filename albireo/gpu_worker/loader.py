"""From a worker's config to a model that is ready to run."""

from pathlib import Path
from typing import Final

import torch

from albireo.checkpoint.shard import ModelShard
from albireo.config import Dtype, WorkerConfig
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.backend import Backend
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.weights import DummyWeights, MappedWeights, OnProgress, Weights

TORCH_DTYPES: Final[dict[Dtype, torch.dtype]] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_model(
    config: WorkerConfig,
    shard: ModelShard,
    attention: Attention,
    collectives: Collectives,
    on_progress: OnProgress,
    backend: Backend,
) -> DecoderModel:
    """This rank's share of the decoder that `config` names, with its checkpoint's weights or random ones.

    Called by the worker's main thread before it reports ready; `on_progress(stage, fraction)` is called on the way,
    about a hundred times. Raises `CheckpointError` if the folder changed since the supervisor read it.
    """
    dtype = TORCH_DTYPES[config.dtype]
    weights: Weights
    if config.load_format == "dummy":
        weights = DummyWeights(config.model, dtype, config.seed, on_progress, shard.size, backend.device)
    else:
        path = Path(config.model_path)
        weights = MappedWeights(path, config.model, dtype, on_progress, shard.size, backend.device)
    max_model_len = config.scheduler.max_model_len
    model = DecoderModel(config.model, shard, weights, dtype, attention, collectives, max_model_len, backend)
    weights.release()
    return model
