"""`albireo-run serve`: from flags to the processes of one engine."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from albireo import __version__, limits, logs
from albireo.checkpoint import CheckpointError, GenerationDefaults
from albireo.checkpoint.generation import read_generation_config
from albireo.config import (
    CoordinatorConfig,
    FrontendConfig,
    GrammarConfig,
    LogFormat,
    LogLevel,
    ReasoningParser,
    RoutingPolicy,
    SegmentFds,
    ToolCallParser,
    WorkerConfig,
    worker_name,
)
from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.errors import StartupError
from albireo.gpu_worker.launch_env import worker_environment
from albireo.listener import ListenAddress
from albireo.settings import LiveSettings
from albireo.startup_display import StartupDisplay
from albireo.supervisor.child_process import ChildSpec
from albireo.supervisor.run import run_engine

DEMO_MODEL = Path(__file__).parent / "demo_model"


class ServeArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP side's flags of `albireo-run serve`, named as there."""

    engine: EngineArgs
    address: ListenAddress
    served_model_names: tuple[str, ...]
    api_keys: tuple[str, ...]
    root_path: str
    access_log: bool
    shutdown_timeout_s: float
    worker_timeout_s: float
    num_frontends: int
    max_logprobs: int
    chat_template: str | None
    """Path of a template file, or the template itself."""
    generation_config: str
    """`auto`, `vllm`, or a folder."""
    log_level: LogLevel
    log_format: LogFormat = "text"
    settings: LiveSettings | None = None
    """What SIGHUP reads again; `api_keys` and `log_level` are its first."""
    web_page: bool = True
    enable_auto_tool_choice: bool = False
    tool_call_parser: ToolCallParser | None = None
    reasoning_parser: ReasoningParser | None = None
    allowed_origins: tuple[str, ...] = ()
    request_id_headers: bool = False
    max_num_waiting: int = limits.MAX_NUM_WAITING
    routing_policy: RoutingPolicy = "cache-aware"


def serve(args: ServeArgs) -> int:
    """Runs the server until it is stopped; returns its exit code. Raises StartupError."""
    logs.configure("supervisor", args.log_level, args.log_format)
    engine = plan_engine(args.engine, num_cpus=len(os.sched_getaffinity(0)))
    template = read_chat_template(args.chat_template)
    names = args.served_model_names or default_model_names(args.engine.model)
    display = StartupDisplay(names[0], interactive=sys.stderr.isatty(), log_format=args.log_format)
    try:
        return run_engine(
            lambda run_dir, segments, socket_fd: child_specs(
                args, engine, names, template, run_dir, segments, socket_fd
            ),
            engine.scheduler,
            engine.num_workers,
            args.engine.num_replicas,
            names[0],
            args.address,
            display,
            args.shutdown_timeout_s,
            args.worker_timeout_s,
            args.num_frontends,
            engine.checkpoint.model.vocab_size if engine.runs_model else None,
            args.settings,
        )
    finally:
        display.close()


def default_model_names(model: str) -> tuple[str, ...]:
    """As vLLM: the model as it was named on the command line; the bundled one is `albireo-demo`."""
    return ("albireo-demo",) if Path(model) == DEMO_MODEL else (model,)


def read_chat_template(template: str | None) -> str | None:
    """The text of --chat-template: a file's, or the argument itself when it looks like a template."""
    if template is None or "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read --chat-template {template}: {error}") from error


def child_specs(
    args: ServeArgs,
    engine: EnginePlan,
    names: tuple[str, ...],
    template: str | None,
    run_dir: str,
    replicas: Sequence[SegmentFds],
    socket_fd: int,
) -> list[ChildSpec]:
    """Every process of the server; the workers first: they take longest to start."""
    workers, others = [], []
    for number, segments in enumerate(replicas):
        *ranks, coordinator = engine_specs(engine, args.log_level, run_dir, segments, number)
        workers += ranks
        others.append(coordinator)
        if segments.grammar >= 0:
            others.append(_grammar_spec(engine, args.log_level, run_dir, segments, number))
    frontends = [
        _frontend_spec(args, engine, names, template, run_dir, replicas, socket_fd, index)
        for index in range(args.num_frontends)
    ]
    return [spec.logging_as(args.log_format) for spec in (*workers, *frontends, *others)]


def _generation_defaults(source: str, engine: EnginePlan) -> GenerationDefaults:
    """Raises StartupError."""
    if source in ("auto", "vllm"):
        return engine.checkpoint.defaults if source == "auto" else GenerationDefaults()
    folder = Path(source)
    if not (folder / "generation_config.json").is_file():
        raise StartupError(f"--generation-config: {folder} has no generation_config.json (or say auto, or vllm)")
    model = engine.checkpoint.model
    try:
        return read_generation_config(folder, model.vocab_size, model.eos_token_ids)[0]
    except CheckpointError as error:
        raise StartupError(f"--generation-config: {error}") from error


def engine_specs(
    engine: EnginePlan, log_level: LogLevel, run_dir: str, segments: SegmentFds, replica: int = 0
) -> list[ChildSpec]:
    """The workers of a replica, then their coordinator: all that computes, without what speaks HTTP."""
    model = engine.checkpoint.model
    workers = [
        WorkerConfig(
            name=worker_name(replica, rank, engine.num_workers),
            replica=replica,
            run_dir=run_dir,
            log_level=log_level,
            scheduler=engine.scheduler,
            segments=segments,
            rank=rank,
            num_workers=engine.num_workers,
            sampling_mode=engine.sampling_mode,
            collectives=engine.collectives,
            model=model,
            model_path=engine.checkpoint.path,
            device=engine.device,
            dtype=engine.dtype,
            kv_cache_bytes=engine.kv_cache_bytes,
            num_threads=engine.num_threads,
            load_format=engine.load_format,
            seed=engine.seed,
            null_step_ms=engine.null_step_ms,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            enforce_eager=engine.enforce_eager,
            sim=engine.sim,
        )
        for rank in range(engine.num_workers)
    ]
    coordinator = CoordinatorConfig(
        name=f"coordinator-{replica}",
        replica=replica,
        run_dir=run_dir,
        log_level=log_level,
        scheduler=engine.scheduler,
        segments=segments,
        eos_token_ids=model.eos_token_ids,
        vocab_size=model.vocab_size,
        num_workers=engine.num_workers,
        sampling_mode=engine.sampling_mode,
        queue_timeout_s=engine.queue_timeout_s,
    )
    engine_fds = (segments.plan_ring, *segments.token_rings, segments.stats)
    worker_fds = engine_fds if engine.num_workers == 1 else (*engine_fds, segments.collectives)
    if segments.grammar >= 0:
        worker_fds = (*worker_fds, segments.grammar)
    environment = worker_environment(engine.num_threads)
    preload = {"cpu": "albireo.gpu_worker.cpu_device", "cuda": "albireo.gpu_worker.cuda.device"}.get(engine.device, "")
    return [
        *(
            ChildSpec("albireo.gpu_worker", worker, environment, (*worker_fds, segments.flight[worker.name]), preload)
            for worker in workers
        ),
        ChildSpec("albireo.coordinator", coordinator, fds=(*engine_fds, segments.flight[coordinator.name])),
    ]


def _grammar_spec(
    engine: EnginePlan, log_level: LogLevel, run_dir: str, segments: SegmentFds, replica: int
) -> ChildSpec:
    model = engine.checkpoint.model
    grammar = GrammarConfig(
        name=f"grammar-{replica}",
        replica=replica,
        coordinator=f"coordinator-{replica}",
        run_dir=run_dir,
        log_level=log_level,
        scheduler=engine.scheduler,
        segments=segments,
        tokenizer_path=engine.tokenizer_path,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
    )
    fds = (segments.grammar, segments.flight[grammar.name])
    return ChildSpec("albireo.grammar", grammar, fds=fds)


def _frontend_spec(
    args: ServeArgs,
    engine: EnginePlan,
    names: tuple[str, ...],
    template: str | None,
    run_dir: str,
    replicas: Sequence[SegmentFds],
    socket_fd: int,
    index: int,
) -> ChildSpec:
    segments, *more = replicas
    frontend = FrontendConfig(
        name=f"frontend-{index}",
        run_dir=run_dir,
        log_level=args.log_level,
        index=index,
        socket_fd=socket_fd,
        scheduler=engine.scheduler,
        segments=segments,
        more_replicas=tuple(more),
        routing_policy=args.routing_policy,
        model=engine.checkpoint.model,
        generation_defaults=_generation_defaults(args.generation_config, engine),
        served_model_names=names,
        tokenizer_path=engine.tokenizer_path,
        chat_template=template,
        api_keys=args.api_keys,
        root_path=args.root_path,
        access_log=args.access_log,
        max_logprobs=args.max_logprobs,
        shutdown_timeout_s=args.shutdown_timeout_s,
        version=__version__,
        web_page=args.web_page,
        enable_auto_tool_choice=args.enable_auto_tool_choice,
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        ssl_keyfile=args.address.ssl_keyfile,
        ssl_certfile=args.address.ssl_certfile,
        allowed_origins=args.allowed_origins,
        request_id_headers=args.request_id_headers,
        max_num_waiting=args.max_num_waiting,
    )
    # a frontend shows every process's counts and histograms
    shown = [fd for each in replicas for fd in (each.stats, *each.flight.values())]
    return ChildSpec("albireo.frontend", frontend, fds=(socket_fd, segments.requests, segments.routes, *shown))
