"""What would fit: a model's weights and KV cache in the memory of the device that would serve it."""

import math

from msgspec import Struct

from albireo.checkpoint import kv_bytes_per_block
from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.weight_shapes import weight_bytes, weight_shapes
from albireo.doctor.probe import Gpu
from albireo.engine_args import EnginePlan

GIB = 2**30
GPU_STEP_BYTES = 2 * GIB
"""Guessed for a GPU's largest step and captured steps; the worker measures it when it starts."""


class Fit(Struct, frozen=True):
    """One engine in this machine's memory."""

    architecture: str
    parameters: int
    dtype: str
    device: str
    """`cpu`, `cuda`, `null`, or `sim:` and the spec's name."""
    ranks: int
    weights_bytes: int
    kv_bytes_per_token: int
    kv_cache_bytes: int
    """Of all ranks together."""
    kv_cache_tokens: int
    max_model_len: int
    is_estimate: bool
    """A GPU's worker sizes its cache itself, by what the largest step leaves."""

    @property
    def max_len_sequences(self) -> float:
        """Sequences of max_model_len that the cache holds at once."""
        return self.kv_cache_tokens / self.max_model_len


def compute_fit(engine: EnginePlan, gpus: tuple[Gpu, ...]) -> Fit:
    """Of a plan that can be had; `gpus` are those that ranks would take, from the first on."""
    model, block_size = engine.checkpoint.model, engine.scheduler.block_size
    # of all ranks, which hold KV heads twice where there are more of them
    local = shard_model(model, 0, engine.num_workers).local(model)
    block_bytes = engine.num_workers * kv_bytes_per_block(local, block_size, engine.dtype)
    weights = weight_bytes(model, engine.dtype)
    cache_bytes = engine.kv_cache_bytes * engine.num_workers
    is_estimate = engine.device == "cuda" and not engine.kv_cache_bytes
    if is_estimate:
        cache_bytes = _gpu_cache_bytes(engine, weights, gpus)
    return Fit(
        architecture=model.architecture,
        parameters=sum(math.prod(shape) for shape in weight_shapes(model).values()),
        dtype=engine.dtype,
        device=engine.device if engine.sim is None else f"sim:{engine.sim.name}",
        ranks=engine.num_workers,
        weights_bytes=weights,
        kv_bytes_per_token=block_bytes // block_size,
        kv_cache_bytes=cache_bytes,
        kv_cache_tokens=cache_bytes // block_bytes * block_size,
        max_model_len=engine.scheduler.max_model_len,
        is_estimate=is_estimate,
    )


def _gpu_cache_bytes(engine: EnginePlan, weights: int, gpus: tuple[Gpu, ...]) -> int:
    """What --gpu-memory-utilization leaves on the fullest GPU, times the ranks."""
    if not gpus:
        return 0
    used = gpus[: engine.num_workers]
    left = min(
        min(int(gpu.total_bytes * engine.gpu_memory_utilization) - (gpu.total_bytes - gpu.free_bytes), gpu.free_bytes)
        for gpu in used
    )
    return max(0, left - weights // engine.num_workers - GPU_STEP_BYTES) * engine.num_workers
