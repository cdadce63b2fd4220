"""What a worker would find here: asked of a process that imports torch, since this one must not."""

import subprocess
import sys

import msgspec
from msgspec import Struct

from albireo.engine_args import EnginePlan

PROBE_TIMEOUT_S = 120.0
"""A first import of torch from a cold disk takes its time."""


class Gpu(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    total_bytes: int
    free_bytes: int
    capability: str


class Driver(Struct, frozen=True, forbid_unknown_fields=True):
    """NVIDIA's."""

    version: str
    gpus: tuple[str, ...]


class Probe(Struct, frozen=True, forbid_unknown_fields=True):
    """What `albireo.gpu_worker.probe` says."""

    packages: dict[str, str | None]
    """Version by name; None: not installed."""
    cuda_build: str | None
    """The CUDA version that torch was built for."""
    no_cuda: str | None
    """Why no GPU can be used; None: one can."""
    gpus: tuple[Gpu, ...]
    driver: Driver | None
    packs_bf16: bool
    """oneDNN has kernels for bfloat16 products here."""
    kernel_rows: int
    """Rows up to which our own product kernel is used, and a decode step is one program."""
    fast_attention: bool | None
    """Whether the attention kernels take the model's sizes; None without a model."""


class ProbeError(Exception):
    """The worker's packages cannot be imported; the text is one line."""


def ask_probe(engine: EnginePlan | None) -> Probe:
    """Takes seconds. Raises ProbeError."""
    question = None
    if engine is not None:
        question = {"model": engine.checkpoint.model, "block_size": engine.scheduler.block_size}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "albireo.gpu_worker.probe"],
            input=msgspec.json.encode(question), capture_output=True, timeout=PROBE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ProbeError(f"importing torch took more than {PROBE_TIMEOUT_S:g} s") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        raise ProbeError(last[-1] if last else f"it ended with exit code {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Probe)
