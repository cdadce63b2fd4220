"""From what the user asked for and what the checkpoint says to one consistent engine: sizes, memory, defaults.

Everything that can be known to fail is found here, before a process starts.
"""

from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from albireo.checkpoint import Checkpoint, CheckpointError, ModelConfig, kv_bytes_per_block, read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.weight_shapes import weight_bytes
from albireo.config import CollectivesKind, DeviceName, Dtype, SamplingMode, SchedulerConfig, SchedulingPolicy
from albireo.errors import StartupError
from albireo.shm.segment import available_memory_bytes
from albireo.sim.memory import RESERVE_BYTES, RankMemory, rank_memory
from albireo.sim.spec import DeviceSpec, SpecError, read_spec

GIB = 2**30
MAX_SWAP_SPACE_GIB = 2**14
DEFAULT_KV_CACHE_BYTES = 4 * GIB
"""Upper end of the default; pages of the cache that are never used cost nothing."""
MEMORY_RESERVE_BYTES = GIB
"""Left for the processes themselves when the default KV cache is sized."""
DEFAULT_GPU_MEMORY_UTILIZATION = 0.9
MIN_QUEUE_TIMEOUT_S = 0.1
"""Less would end requests that wait for a step under way."""
MAX_QUEUE_TIMEOUT_S = 86400
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
    queue_timeout: float = 0.0
    """Seconds that a request may wait for its first step; 0: for ever."""
    run_ahead: int = 2
    kv_cache_bytes: int | None = None
    swap_space: float = 0.0
    """GiB of host memory for each rank."""
    cpu_threads: int | None = None
    tensor_parallel_size: int = 1
    num_replicas: int = 1
    sampling_mode: SamplingMode | None = None
    collectives: CollectivesKind | None = None
    device: str = "auto"
    """`auto`, a `DeviceName` but `sim`, or `sim:` and a preset or the path of a spec file."""
    null_step_ms: float | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool = False


class EnginePlan(Struct, frozen=True):
    """One engine, ready to be started; all its replicas are alike."""

    checkpoint: Checkpoint
    tokenizer_path: str
    dtype: Dtype
    scheduler: SchedulerConfig
    num_workers: int
    """Ranks: the tensor-parallel degree."""
    sampling_mode: SamplingMode
    queue_timeout_s: float
    collectives: CollectivesKind
    kv_cache_bytes: int
    """Of each rank; 0 where a GPU's worker finds out what `gpu_memory_utilization` leaves."""
    load_format: Literal["safetensors", "dummy"]
    num_threads: int
    """Of each rank."""
    seed: int
    device: DeviceName
    null_step_ms: float
    gpu_memory_utilization: float
    enforce_eager: bool
    sim: DeviceSpec | None
    """Of the simulated device."""

    @property
    def runs_model(self) -> bool:
        """Its tokens are a model's, which can be held to a grammar."""
        return self.device not in ("null", "sim")


def plan_engine(args: EngineArgs, num_cpus: int) -> EnginePlan:
    """Checks the flags against the checkpoint and this machine's memory.

    Raises StartupError, in one line, with exit code 2 for flags that contradict each other and 3 for a checkpoint
    that cannot be served or memory that is not there.
    """
    device, spec = _choose_device(args)
    needs_weights = args.load_format != "dummy" and device in ("cpu", "cuda")
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
    swap_bytes = _size_swap_space(args, device, rank_block_bytes)
    if spec is not None:
        args = replace(args, kv_cache_bytes=size_sim_kv_cache(args, checkpoint.model, dtype, spec))
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
            num_swap_blocks=swap_bytes // rank_block_bytes,
        ),
        num_workers=args.tensor_parallel_size,
        sampling_mode=args.sampling_mode or ("sequence-parallel" if device in ("cuda", "sim") else "local"),
        queue_timeout_s=_check_queue_timeout(args.queue_timeout),
        collectives=args.collectives or ("nccl" if device == "cuda" else "shm"),
        kv_cache_bytes=kv_cache_bytes,
        load_format="dummy" if args.load_format == "dummy" else "safetensors",
        num_threads=num_threads,
        seed=args.seed,
        device=device,
        null_step_ms=args.null_step_ms or 0.0,
        gpu_memory_utilization=args.gpu_memory_utilization or DEFAULT_GPU_MEMORY_UTILIZATION,
        enforce_eager=args.enforce_eager,
        sim=spec,
    )


def _choose_device(args: EngineArgs) -> tuple[DeviceName, DeviceSpec | None]:
    """The device, and of a simulated one what it can do."""
    device, spec = _find_device(args.device)
    utilization = args.gpu_memory_utilization
    if utilization is not None and not 0.0 < utilization <= 1.0:
        raise StartupError(
            f"--gpu-memory-utilization {utilization:g} is out of range: above 0 and up to 1 is possible", exit_code=2
        )
    if args.cpu_threads is not None and device != "cpu":
        raise StartupError(f"--cpu-threads is for --device cpu, not for {device}", exit_code=2)
    if device == "cuda":
        _check_cuda_args(args)
    elif args.collectives == "nccl":
        raise StartupError(f"--collectives nccl is for --device cuda, not for {device}", exit_code=2)
    elif device != "sim" and (utilization is not None or args.enforce_eager):
        flag = "--enforce-eager" if args.enforce_eager else "--gpu-memory-utilization"
        raise StartupError(f"{flag} is for --device cuda, not for {device}", exit_code=2)
    if args.collectives is not None and device in ("sim", "null"):
        why = "an exchange takes what the spec's [link] says" if device == "sim" else "its ranks exchange nothing"
        raise StartupError(f"--collectives {args.collectives} is not for --device {device}: {why}", exit_code=2)
    if args.null_step_ms is None:
        return device, spec
    if device != "null":
        raise StartupError(f"--null-step-ms is for --device null, not for {device}", exit_code=2)
    if not 0 <= args.null_step_ms <= MAX_NULL_STEP_MS:
        bound = f"between 0 and {MAX_NULL_STEP_MS:g}"
        raise StartupError(f"--null-step-ms {args.null_step_ms:g} is out of range: {bound} is possible", exit_code=2)
    return device, spec


def _find_device(name: str) -> tuple[DeviceName, DeviceSpec | None]:
    if name.startswith("sim:"):
        try:
            return "sim", read_spec(name.removeprefix("sim:"))
        except SpecError as error:
            raise StartupError(f"--device {name}: {error}", exit_code=2) from error
    if name == "auto":
        return _default_device(), None
    for known in get_args(DeviceName):
        if name == known != "sim":
            return known, None
    raise StartupError(f"there is no --device {name}", exit_code=2)


def _default_device() -> DeviceName:
    """A GPU where there is one and torch is not a build for CPUs. The worker, which has torch, knows for sure."""
    if not Path("/dev/nvidiactl").exists():
        return "cpu"
    try:
        return "cpu" if "+cpu" in metadata.version("torch") else "cuda"
    except metadata.PackageNotFoundError:
        return "cpu"


def _check_cuda_args(args: EngineArgs) -> None:
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


def size_sim_kv_cache(args: EngineArgs, model: ModelConfig, dtype: Dtype, spec: DeviceSpec) -> int:
    """Bytes of all ranks: what was asked for, or what --gpu-memory-utilization leaves beside weights and the largest
    step; as on a GPU, where the step is measured."""
    size, share = args.tensor_parallel_size, args.gpu_memory_utilization or DEFAULT_GPU_MEMORY_UTILIZATION
    memory = rank_memory(model, size, dtype, spec, args.max_num_seqs, args.max_num_batched_tokens)
    if args.kv_cache_bytes is not None:
        if args.kv_cache_bytes > size * memory.room(1.0):
            raise StartupError(
                f"--kv-cache-bytes {args.kv_cache_bytes} is more than {size} x sim:{spec.name} hold: "
                f"{_memory_in_words(memory, size)}: lower it"
            )
        return args.kv_cache_bytes
    room = memory.room(share)
    if room <= 0:
        raise StartupError(
            f"the model does not fit: --gpu-memory-utilization {share:g} of sim:{spec.name} is "
            f"{memory.total * share / GIB:.1f} GiB; {_memory_in_words(memory, size)}: raise --tensor-parallel-size"
        )
    return size * room


def _memory_in_words(memory: RankMemory, size: int) -> str:
    return (
        f"each of {size} has {memory.total / GIB:.1f} GiB, weights take {memory.weights / GIB:.1f}, the largest step "
        f"{memory.step / GIB:.1f}, libraries and captured steps {RESERVE_BYTES / GIB:.1f}"
    )


def _size_swap_space(args: EngineArgs, device: DeviceName, rank_block_bytes: int) -> int:
    """Bytes of each rank."""
    if not 0 <= args.swap_space <= MAX_SWAP_SPACE_GIB:
        bound = f"between 0 and {MAX_SWAP_SPACE_GIB} GiB are possible"
        raise StartupError(f"--swap-space {args.swap_space:g} is out of range: {bound}", exit_code=2)
    nbytes = int(args.swap_space * GIB)
    if 0 < nbytes < rank_block_bytes:
        raise StartupError(
            f"--swap-space {args.swap_space:g} GiB holds no KV block, which has {rank_block_bytes} bytes", exit_code=2
        )
    needed = args.num_replicas * args.tensor_parallel_size * nbytes
    available = available_memory_bytes() if needed and device in ("cpu", "cuda") else needed  # others allocate none
    if needed > available:
        raise StartupError(
            f"--swap-space {args.swap_space:g} takes {needed / GIB:.1f} GiB of host memory on all ranks together, and "
            f"{available / GIB:.1f} GiB are available: lower it"
        )
    return nbytes


def _check_queue_timeout(timeout_s: float) -> float:
    if not (timeout_s == 0 or MIN_QUEUE_TIMEOUT_S <= timeout_s <= MAX_QUEUE_TIMEOUT_S):
        bound = f"0 for none, or {MIN_QUEUE_TIMEOUT_S} to {MAX_QUEUE_TIMEOUT_S} seconds are possible"
        raise StartupError(f"--queue-timeout {timeout_s:g} is out of range: {bound}", exit_code=2)
    return timeout_s


def _threads_per_rank(args: EngineArgs, num_cpus: int) -> int:
    """Every rank runs all the time, so each needs a thread of its own."""
    size, num_threads = args.num_replicas * args.tensor_parallel_size, args.cpu_threads or num_cpus
    if size > num_threads:
        given = f"--cpu-threads {num_threads}" if args.cpu_threads else f"the {num_cpus} cores here"
        flags = f"--tensor-parallel-size {args.tensor_parallel_size}"
        if args.num_replicas > 1:
            flags = f"{flags} with --replicas {args.num_replicas}"
        raise StartupError(
            f"{flags} needs a thread for each rank, and {given} are fewer; "
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
    weights = args.num_replicas * weight_bytes(checkpoint.model, dtype)
    beside = f"{weights / GIB:.1f} GiB of weights"
    if args.swap_space:
        beside += f" and --swap-space {args.swap_space:g}"
    swap_space = args.num_replicas * args.tensor_parallel_size * int(args.swap_space * GIB)
    left = available_memory_bytes() - weights - swap_space
    if args.kv_cache_bytes is not None:
        if args.num_replicas * args.kv_cache_bytes > left:
            each = f" for each of {args.num_replicas} replicas" if args.num_replicas > 1 else ""
            raise StartupError(
                f"--kv-cache-bytes {args.kv_cache_bytes} ({args.kv_cache_bytes / GIB:.1f} GiB){each} is more than the "
                f"{max(left, 0) / GIB:.1f} GiB of memory left beside {beside}: lower it"
            )
        return args.kv_cache_bytes
    if left < MEMORY_RESERVE_BYTES:
        raise StartupError(
            f"too little memory: {beside} leave {max(left, 0) / GIB:.1f} GiB "
            f"for the KV cache and the processes; {MEMORY_RESERVE_BYTES / GIB:.0f} GiB is the least"
        )
    max_model_len = args.max_model_len or checkpoint.model.context_length
    wanted = args.max_num_seqs * -(-max_model_len // args.block_size) * block_bytes
    return min(wanted, DEFAULT_KV_CACHE_BYTES, (left - MEMORY_RESERVE_BYTES) // 2 // args.num_replicas)
