"""From what the user asked for and what the checkpoint says to one consistent engine: sizes, memory, defaults.

Everything that can be known to fail is found here, before a process starts.
"""

from importlib import metadata
from pathlib import Path
from typing import Literal

from msgspec import Struct

from albireo.checkpoint import Checkpoint, CheckpointError, kv_bytes_per_block, read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.weight_shapes import weight_bytes
from albireo.config import CollectivesKind, DeviceName, Dtype, SamplingMode, SchedulerConfig, SchedulingPolicy
from albireo.errors import StartupError
from albireo.shm.segment import available_memory_bytes

GIB = 2**30
DEFAULT_KV_CACHE_BYTES = 4 * GIB
"""Upper end of the default; pages of the cache that are never used cost nothing."""
MEMORY_RESERVE_BYTES = GIB
"""Left for the processes themselves when the default KV cache is sized."""
DEFAULT_GPU_MEMORY_UTILIZATION = 0.9
MAX_NULL_STEP_MS = 500.0
"""A worker shows life between steps only, and must do so within --worker-timeout, of which 1 s is the least."""


class EngineArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """The engine's flags of `albireo-run serve`, named as there; None where the default depends on the model."""

    model: str
    tokenizer: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    max_model_len: int | None = None
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    seed: int = 0
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    scheduling_policy: SchedulingPolicy = "fcfs"
    run_ahead: int = 2
    kv_cache_bytes: int | None = None
    cpu_threads: int | None = None
    tensor_parallel_size: int = 1
    sampling_mode: SamplingMode | None = None
    collectives: CollectivesKind | None = None
    device: Literal["auto", "cpu", "null", "cuda"] = "auto"
    null_step_ms: float | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool = False


class EnginePlan(Struct, frozen=True):
    """One engine, ready to be started."""

    checkpoint: Checkpoint
    tokenizer_path: str
    dtype: Dtype
    scheduler: SchedulerConfig
    num_workers: int
    """Ranks: the tensor-parallel degree."""
    sampling_mode: SamplingMode
    collectives: CollectivesKind
    kv_cache_bytes: int
    """Of each rank; 0 where a GPU's follows from `gpu_memory_utilization`."""
    load_format: Literal["safetensors", "dummy"]
    num_threads: int
    """Of each rank."""
    seed: int
    device: DeviceName
    null_step_ms: float
    gpu_memory_utilization: float
    enforce_eager: bool


def plan_engine(args: EngineArgs, num_cpus: int) -> EnginePlan:
    """Checks the flags against the checkpoint and this machine's memory.

    Raises StartupError, in one line, with exit code 2 for flags that contradict each other and 3 for a checkpoint
    that cannot be served or memory that is not there.
    """
    device = _choose_device(args)
    needs_weights = args.load_format != "dummy" and device != "null"
    try:
        checkpoint = read_checkpoint(args.model, check_weights=needs_weights)
    except CheckpointError as error:
        raise StartupError(str(error)) from error
    tokenizer_path = args.tokenizer or checkpoint.path
    if not (Path(tokenizer_path) / "tokenizer.json").is_file():
        raise StartupError(f"no tokenizer.json in {tokenizer_path}: name a folder that has one with --tokenizer")
    dtype: Dtype = _choose_dtype(args.dtype, checkpoint.model.dtype)
    if args.max_num_batched_tokens < args.max_num_seqs:
        raise StartupError(
            f"--max-num-batched-tokens ({args.max_num_batched_tokens}) must be at least --max-num-seqs "
            f"({args.max_num_seqs}): every running sequence decodes one token a step",
            exit_code=2,
        )
    limit = checkpoint.model.context_length
    if args.max_model_len is not None and args.max_model_len > limit:
        raise StartupError(f"--max-model-len {args.max_model_len} exceeds the model's {limit} positions", exit_code=2)
    num_threads = _threads_per_rank(args, num_cpus) if device == "cpu" else 1
    rank_block_bytes = _rank_block_bytes(args, checkpoint, dtype)
    kv_cache_bytes, max_model_len = _size_sequences(args, checkpoint, dtype, device, rank_block_bytes)
    return EnginePlan(
        checkpoint=checkpoint,
        tokenizer_path=tokenizer_path,
        dtype=dtype,
        scheduler=SchedulerConfig(
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            max_model_len=max_model_len,
            block_size=args.block_size,
            run_ahead=args.run_ahead,
            policy=args.scheduling_policy,
            enable_prefix_caching=args.enable_prefix_caching,
        ),
        num_workers=args.tensor_parallel_size,
        sampling_mode=args.sampling_mode or ("sequence-parallel" if device == "cuda" else "local"),
        collectives=args.collectives or ("nccl" if device == "cuda" else "shm"),
        kv_cache_bytes=kv_cache_bytes,
        load_format="dummy" if args.load_format == "dummy" else "safetensors",
        num_threads=num_threads,
        seed=args.seed,
        device=device,
        null_step_ms=args.null_step_ms or 0.0,
        gpu_memory_utilization=args.gpu_memory_utilization or DEFAULT_GPU_MEMORY_UTILIZATION,
        enforce_eager=args.enforce_eager,
    )


def _choose_device(args: EngineArgs) -> DeviceName:
    device: DeviceName = _default_device() if args.device == "auto" else args.device
    if device == "cuda":
        _check_cuda_args(args)
    elif args.collectives == "nccl":
        raise StartupError(f"--collectives nccl is for --device cuda, not for {device}", exit_code=2)
    elif args.gpu_memory_utilization is not None or args.enforce_eager:
        flag = "--enforce-eager" if args.enforce_eager else "--gpu-memory-utilization"
        raise StartupError(f"{flag} is for --device cuda, not for {device}", exit_code=2)
    if args.null_step_ms is None:
        return device
    if device != "null":
        raise StartupError(f"--null-step-ms is for --device null, not for {device}", exit_code=2)
    if not 0 <= args.null_step_ms <= MAX_NULL_STEP_MS:
        bound = f"between 0 and {MAX_NULL_STEP_MS:g}"
        raise StartupError(f"--null-step-ms {args.null_step_ms:g} is out of range: {bound} is possible", exit_code=2)
    return device


def _default_device() -> DeviceName:
    """A GPU where there is one and torch is not a build for CPUs. The worker, which has torch, knows for sure."""
    if not Path("/dev/nvidiactl").exists():
        return "cpu"
    try:
        return "cpu" if "+cpu" in metadata.version("torch") else "cuda"
    except metadata.PackageNotFoundError:
        return "cpu"


def _check_cuda_args(args: EngineArgs) -> None:
    utilization = args.gpu_memory_utilization
    if utilization is not None and not 0.0 < utilization <= 1.0:
        raise StartupError(
            f"--gpu-memory-utilization {utilization:g} is out of range: above 0 and up to 1 is possible", exit_code=2
        )
    if args.cpu_threads is not None:
        raise StartupError("--cpu-threads is for --device cpu, not for cuda", exit_code=2)
    if args.tensor_parallel_size == 1:
        return
    if args.sampling_mode == "local":
        raise StartupError(
            "--sampling-mode local is for --device cpu: what it exchanges depends on what is drawn, which a captured "
            "step cannot; sequence-parallel and gathered run on GPUs",
            exit_code=2,
        )
    if args.collectives == "shm":
        raise StartupError("--collectives shm is for --device cpu: nccl and gloo run on GPUs", exit_code=2)
    if args.collectives == "gloo" and not args.enforce_eager:
        raise StartupError("--collectives gloo cannot be captured on a GPU: add --enforce-eager", exit_code=2)


def _size_sequences(
    args: EngineArgs, checkpoint: Checkpoint, dtype: Dtype, device: DeviceName, rank_block_bytes: int
) -> tuple[int, int]:
    """Bytes of each rank's KV cache, and the longest sequence. Only a GPU's worker knows what the GPU has room for:
    there the former is 0 unless it was asked for, and the worker refuses a cache that holds no such sequence."""
    limit = checkpoint.model.context_length
    block_bytes = args.tensor_parallel_size * rank_block_bytes
    if device == "cuda" and args.kv_cache_bytes is None:
        return 0, args.max_model_len or limit
    if device != "cpu" and args.kv_cache_bytes is not None:
        kv_cache_bytes = args.kv_cache_bytes  # nothing is allocated on this side
    else:
        kv_cache_bytes = _size_kv_cache(args, checkpoint, dtype, block_bytes)
    num_kv_blocks = kv_cache_bytes // block_bytes
    capacity = num_kv_blocks * args.block_size
    max_model_len = args.max_model_len or min(limit, capacity)
    if max_model_len > capacity or not num_kv_blocks:
        raise StartupError(
            f"the KV cache of {kv_cache_bytes} bytes holds {capacity} tokens, fewer than --max-model-len "
            f"{max_model_len}: raise --kv-cache-bytes or lower --max-model-len"
        )
    return num_kv_blocks * rank_block_bytes, max_model_len


def _threads_per_rank(args: EngineArgs, num_cpus: int) -> int:
    """Every rank runs all the time, so each needs a thread of its own."""
    size, num_threads = args.tensor_parallel_size, args.cpu_threads or num_cpus
    if size > num_threads:
        given = f"--cpu-threads {num_threads}" if args.cpu_threads else f"the {num_cpus} cores here"
        raise StartupError(
            f"--tensor-parallel-size {size} needs a thread for each rank, and {given} are fewer; "
            f"--cpu-threads {size} lets ranks share cores (slow: for tests)",
            exit_code=2,
        )
    return num_threads // size


def _rank_block_bytes(args: EngineArgs, checkpoint: Checkpoint, dtype: Dtype) -> int:
    """Bytes of a KV block on one rank; also the check that the model can be divided."""
    try:
        shard = shard_model(checkpoint.model, 0, args.tensor_parallel_size)
    except CheckpointError as error:
        raise StartupError(f"{error}: choose another --tensor-parallel-size", exit_code=2) from error
    return kv_bytes_per_block(shard.local(checkpoint.model), args.block_size, dtype)


def _choose_dtype(asked: str, stored: str) -> Dtype:
    """auto: as stored; half precision that the CPU has no arithmetic for becomes bfloat16, as in vLLM."""
    if asked == "float32" or (asked == "auto" and stored == "float32"):
        return "float32"
    return "bfloat16"


def _size_kv_cache(args: EngineArgs, checkpoint: Checkpoint, dtype: Dtype, block_bytes: int) -> int:
    """Bytes of KV cache: what was asked for if it fits, else the default: enough for max_num_seqs sequences of the
    longest kind, at most DEFAULT_KV_CACHE_BYTES and half of the memory that the weights leave."""
    weights = weight_bytes(checkpoint.model, dtype)
    left = available_memory_bytes() - weights
    if args.kv_cache_bytes is not None:
        if args.kv_cache_bytes > left:
            raise StartupError(
                f"--kv-cache-bytes {args.kv_cache_bytes} ({args.kv_cache_bytes / GIB:.1f} GiB) is more than the "
                f"{max(left, 0) / GIB:.1f} GiB of memory left beside {weights / GIB:.1f} GiB of weights: lower it"
            )
        return args.kv_cache_bytes
    if left < MEMORY_RESERVE_BYTES:
        raise StartupError(
            f"too little memory: the weights need {weights / GIB:.1f} GiB and leave {max(left, 0) / GIB:.1f} GiB "
            f"for the KV cache and the processes; {MEMORY_RESERVE_BYTES / GIB:.0f} GiB is the least"
        )
    max_model_len = args.max_model_len or checkpoint.model.context_length
    wanted = args.max_num_seqs * -(-max_model_len // args.block_size) * block_bytes
    return min(wanted, DEFAULT_KV_CACHE_BYTES, (left - MEMORY_RESERVE_BYTES) // 2)
