"""The frozen configs: one Struct per process, derived once by the CLI, sent to each child as JSON on its stdin.

A leaf. Unknown keys are fatal (`forbid_unknown_fields`), and only this module reads the environment.
"""

import os
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
from msgspec import Struct

from albireo import limits
from albireo.checkpoint import GenerationDefaults, ModelConfig
from albireo.sim.spec import DeviceSpec

Dtype = Literal["bfloat16", "float32"]
SchedulingPolicy = Literal["fcfs", "priority"]
SamplingMode = Literal["local", "sequence-parallel", "gathered"]
"""How t ranks sample (`gpu_worker.sampling.modes`)."""
CollectivesKind = Literal["shm", "gloo", "nccl"]
ToolCallParser = Literal["hermes", "llama3_json", "mistral"]
ReasoningParser = Literal["qwen3", "deepseek_r1"]
DeviceName = Literal["cpu", "cuda", "null", "sim"]
"""Where steps run; `null` runs no model (`gpu_worker.null_device`), `sim` neither, in the time that one would take
(`gpu_worker.sim_device`)."""
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: Final[tuple[LogLevel, ...]] = get_args(LogLevel)
DEFAULT_LOG_LEVEL: Final = "info"
LogFormat = Literal["text", "json"]
RoutingPolicy = Literal["cache-aware", "least-work", "round-robin"]
"""Which replica gets a request (`frontend.routing`)."""

FIRST_PASSED_FD = 3
"""SD_LISTEN_FDS_START."""
SERVICE_RUNTIME_DIR = "/run/albireo"
"""RuntimeDirectory= of the systemd unit."""


class SchedulerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What bounds a step and a sequence; shared by the coordinator and the workers, since it sizes their arrays."""

    max_num_seqs: int = 256
    """Most sequences in one step."""
    max_num_batched_tokens: int = 2048
    """Most tokens in one step, decodes first; a longer prompt is prefilled in chunks."""
    max_model_len: int = 2048
    """Most tokens in one sequence, prompt and output together."""
    block_size: int = 16
    """Tokens in one KV block."""
    run_ahead: int = 2
    """Steps planned past the last confirmed one; 0 plans a step only when the one before is confirmed."""
    policy: SchedulingPolicy = "fcfs"
    enable_prefix_caching: bool = True
    num_swap_blocks: int = 0
    """KV blocks that each rank has room for in host memory, for preempted requests; 0: these are computed again."""

    @property
    def max_blocks_per_seq(self) -> int:
        return -(-self.max_model_len // self.block_size)

    @property
    def num_slots(self) -> int:
        """Request slots in the device's state: more than max_num_seqs, so that a request whose last step is in
        flight keeps its slot without keeping a waiting request out of the batch."""
        return self.max_num_seqs + max(8, self.max_num_seqs // 4)


class SegmentFds(Struct, frozen=True, forbid_unknown_fields=True):
    """File descriptors of one replica's shared-memory segments, inherited from the supervisor, who owns them."""

    plan_ring: int
    token_rings: tuple[int, ...]
    """One per worker rank."""
    stats: int
    collectives: int = -1
    """What ranks exchange; -1 when there is one rank."""
    requests: int = -1
    """What the frontends count of their requests, of all replicas; with the first of these."""
    routes: int = -1
    """What they tell each other of where requests go (`shm.routes`); likewise."""
    flight: dict[str, int] = {}
    """By process name: where it notes what it does (`shm.flight`). The first replica's has the frontends too."""
    grammar: int = -1
    """What constrained sequences may sample (`shm.grammar_masks`); -1 where none are served."""


class ChildConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every child of the supervisor has."""

    name: str
    """Unique process name, e.g. `coordinator-0`: the process title and the log prefix."""
    run_dir: str
    """Private (0700) directory of the ipc sockets."""
    log_level: LogLevel
    log_format: LogFormat = "text"
    incarnation: int = 0
    """How many have had this place before it."""
    replica: int = 0
    """Number of the replica that it belongs to; a frontend belongs to none."""

    @property
    def identity(self) -> str:
        """On ZeroMQ's sockets: what was said by one that died is not taken for its successor's words."""
        return f"{self.name}.{self.incarnation}" if self.incarnation else self.name


class CoordinatorConfig(ChildConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    scheduler: SchedulerConfig
    segments: SegmentFds
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    num_workers: int
    sampling_mode: SamplingMode = "local"
    queue_timeout_s: float = 0.0
    """How long a request may wait for its first step; 0: for ever."""


class GrammarConfig(ChildConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The grammar process, one beside each coordinator."""

    scheduler: SchedulerConfig
    segments: SegmentFds
    tokenizer_path: str
    """Folder with tokenizer.json."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    coordinator: str = "coordinator-0"
    """Identity of the coordinator that it serves."""


class WorkerConfig(ChildConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    scheduler: SchedulerConfig
    segments: SegmentFds
    rank: int
    num_workers: int
    sampling_mode: SamplingMode
    collectives: CollectivesKind
    model: ModelConfig
    model_path: str
    device: DeviceName
    dtype: Dtype
    kv_cache_bytes: int
    """Size of this worker's KV cache; the number of blocks follows from its share of the model. 0 on a GPU: what
    `gpu_memory_utilization` leaves."""
    num_threads: int
    load_format: Literal["safetensors", "dummy"]
    seed: int
    null_step_ms: float = 0.0
    """What a step takes on the null device."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that weights, steps and KV cache may have together; a simulated one's is used up when its
    KV cache is sized."""
    enforce_eager: bool = False
    """Launch a GPU's steps kernel by kernel instead of as captured graphs."""
    sim: DeviceSpec | None = None
    """Of the simulated device."""

    @property
    def number(self) -> int:
        """Of the rank among those of all replicas; its GPU's."""
        return self.replica * self.num_workers + self.rank


class FrontendConfig(ChildConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    index: int
    """Its number, and that of its part of `segments.requests`."""
    socket_fd: int
    """The listening socket, opened by the supervisor. All frontends accept on it."""
    scheduler: SchedulerConfig
    segments: SegmentFds
    more_replicas: tuple[SegmentFds, ...] = ()
    """Of those after the first."""
    routing_policy: RoutingPolicy = "cache-aware"
    model: ModelConfig
    generation_defaults: GenerationDefaults
    served_model_names: tuple[str, ...]
    """The first is the one that responses carry."""
    tokenizer_path: str
    """Folder with tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja."""
    chat_template: str | None
    """Text of the template that --chat-template named; None takes the checkpoint's."""
    api_keys: tuple[str, ...]
    """Empty: no authentication."""
    root_path: str
    access_log: bool
    max_logprobs: int
    shutdown_timeout_s: float
    version: str
    enable_auto_tool_choice: bool = False
    tool_call_parser: ToolCallParser | None = None
    reasoning_parser: ReasoningParser | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    allowed_origins: tuple[str, ...] = ()
    """Of browsers' pages that may use the API; `*` is all."""
    request_id_headers: bool = False
    max_num_waiting: int = limits.MAX_NUM_WAITING
    web_page: bool = True
    """Whether `/` is the web page."""

    @property
    def replicas(self) -> tuple[SegmentFds, ...]:
        return (self.segments, *self.more_replicas)


def worker_name(replica: int, rank: int, num_workers: int) -> str:
    """Workers are counted through: `num_workers` of the first replica, then those of the next."""
    return f"worker-{replica * num_workers + rank}"


def process_names(
    num_workers: int, num_frontends: int = 1, has_grammar: bool = False, replica: int = 0
) -> tuple[str, ...]:
    """All processes of one replica, in the order of a request's way through them; the first one's frontends too."""
    frontends = (f"frontend-{index}" for index in range(num_frontends if not replica else 0))
    grammar = (f"grammar-{replica}",) if has_grammar else ()
    workers = (worker_name(replica, rank, num_workers) for rank in range(num_workers))
    return (*frontends, f"coordinator-{replica}", *grammar, *workers)


def encode_config(config: ChildConfig) -> bytes:
    """One line of JSON, as a child reads it from its stdin."""
    return msgspec.json.encode(config) + b"\n"


def environment_api_keys() -> tuple[str, ...]:
    """ALBIREO_API_KEY: one key, or several separated by commas."""
    return split_keys(os.environ.get("ALBIREO_API_KEY", ""))


def split_keys(value: str) -> tuple[str, ...]:
    """Of ALBIREO_API_KEY."""
    return tuple(key.strip() for key in value.split(",") if key.strip())


def environment_log_level() -> LogLevel | None:
    """ALBIREO_LOG_LEVEL, if it is one."""
    name = os.environ.get("ALBIREO_LOG_LEVEL", "").lower()
    return next((level for level in LOG_LEVELS if level == name), None)


def runtime_parent_dir() -> str:
    """Where the private socket directory is made: systemd's RuntimeDirectory, the user's, or /tmp."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        path = os.environ.get(name)
        first = path.split(":")[0] if path else ""
        if first and Path(first).is_dir() and os.access(first, os.W_OK):
            return first
    return "/tmp"


def flight_record_dir() -> str:
    """Where a crashed engine's flight record is left: systemd's StateDirectory, or /tmp."""
    return (os.environ.get("STATE_DIRECTORY") or "/tmp").split(":")[0]


def under_journald() -> bool:
    """True when stderr goes to the systemd journal, which adds its own timestamps and reads <N> priorities.

    JOURNAL_STREAM names the journal's socket as device:inode; it is inherited by processes whose stderr is redirected
    elsewhere.
    """
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


class NotifyEnvironment(Struct, frozen=True):
    """What sd_notify(3) and sd_watchdog_enabled(3) are told through the environment."""

    socket_path: str | None
    """Of a datagram socket; `@name` in the abstract namespace. None: nobody listens."""
    watchdog_usec: int | None
    """Microseconds without a sign of life after which systemd kills the service."""


def take_notify_environment() -> NotifyEnvironment:
    """systemd's variables, taken out of the environment so that children do not inherit them."""
    path = os.environ.pop("NOTIFY_SOCKET", None)
    watchdog_pid = os.environ.pop("WATCHDOG_PID", None)
    usec = os.environ.pop("WATCHDOG_USEC", "")
    is_ours = watchdog_pid in (None, str(os.getpid()))
    return NotifyEnvironment(path or None, int(usec) if is_ours and usec.isdecimal() and int(usec) else None)


class PassedSockets(Struct, frozen=True):
    """Sockets that this process was started with, as sd_listen_fds(3) describes."""

    fds: tuple[int, ...]
    names: tuple[str, ...]
    """One per descriptor: its socket unit, as a rule."""


def take_passed_sockets() -> PassedSockets:
    """systemd's variables, taken out of the environment so that children do not inherit them."""
    pid = os.environ.pop("LISTEN_PID", None)
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return PassedSockets((), ())
    fds = tuple(range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(count)))
    return PassedSockets(fds, tuple(names) if len(names) == len(fds) else ("unknown",) * len(fds))


def environment_openai_api_key() -> str | None:
    """OPENAI_API_KEY: what `bench serve` sends when --api-key is not given, as `vllm bench serve` does."""
    return os.environ.get("OPENAI_API_KEY") or None
