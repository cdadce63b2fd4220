"""`python -m albireo.gpu_worker.probe`: what a worker would find here, as one JSON object on stdout.

For `albireo-run doctor`, which imports no torch. On stdin comes the model it would run, or `null`.
"""

import importlib
import importlib.util
import sys
from importlib import metadata
from typing import Any

import msgspec
import torch
from msgspec import Struct

from albireo.checkpoint import ModelConfig
from albireo.gpu_worker.attention.cpu import fits_kernels
from albireo.gpu_worker.cuda.availability import NoCudaError, cuda_device_index
from albireo.gpu_worker.kernels import skinny_product


class Question(Struct, frozen=True):
    """One rank's share of a model."""

    model: ModelConfig
    block_size: int


def main() -> None:
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question | None)
    sys.stdout.buffer.write(msgspec.json.encode(_software() | _cpu(question) | _gpus() | _driver()))


def _software() -> dict[str, Any]:
    names = ("torch", "numba", "triton", "nvidia-ml-py", "matplotlib", "llguidance")
    return {"packages": {name: _version(name) for name in names}, "cuda_build": torch.version.cuda}


def _cpu(question: Question | None) -> dict[str, Any]:
    packs: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    attention = None
    if question is not None:
        model = question.model
        attention = fits_kernels(model.num_heads, model.num_kv_heads, model.head_dim, question.block_size)
    return {
        "packs_bf16": packs and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "kernel_rows": skinny_product.max_rows(),
        "fast_attention": attention,
    }


def _gpus() -> dict[str, Any]:
    """Of those that this process may use: CUDA_VISIBLE_DEVICES counts."""
    try:
        cuda_device_index(0)
    except NoCudaError as error:
        return {"no_cuda": str(error), "gpus": []}
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        gpus.append({"name": properties.name, "total_bytes": total, "free_bytes": free, "capability": capability})
    return {"no_cuda": None, "gpus": gpus}


def _driver() -> dict[str, Any]:
    """What the driver says, whatever torch was built for; None without a driver or the package to ask it."""
    if importlib.util.find_spec("pynvml") is None:
        return {"driver": None}
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        try:
            names = [
                nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())
            ]
            return {"driver": {"version": nvml.nvmlSystemGetDriverVersion(), "gpus": names}}
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return {"driver": None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
