"""`albireo-run`: argv to frozen configs, errors to exit codes. Imports nothing heavy before it knows what to run.

Exit codes: 0 clean stop, 2 bad arguments, 3 failed start, 1 anything else.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from albireo import __version__
from albireo.argument_types import device_name, in_range, origins, size_in_bytes
from albireo.cluster.cli import add_ray_arguments, ray_flag_without_ray
from albireo.limits import MAX_LOGPROBS, MAX_NUM_WAITING

SGLANG_NAMES = {
    "--model-path": "--model",
    "--tp": "--tensor-parallel-size",
    "--tp-size": "--tensor-parallel-size",
    "--context-length": "--max-model-len",
    "--mem-fraction-static": "--gpu-memory-utilization",
    "--max-running-requests": "--max-num-seqs",
    "--chunked-prefill-size": "--max-num-batched-tokens",
}
"""SGLang's flags and ours: a habit gets an answer, not `unrecognized arguments`."""


REFUSED = {
    "--revision": "checkpoints are local folders, nothing is downloaded",
    "--quantization": "weights are computed as bfloat16 or float32",
    "--trust-remote-code": "code in a checkpoint is never run; the model families that are supported need none",
}
"""Flags that other servers have and that are left out on purpose."""


TAKES_SERVE_FLAGS = (
    ["chat"],
    ["tune"],
    ["bench", "breakdown"],
    ["bench", "latency"],
    ["bench", "throughput"],
    ["systemd", "install"],
)
"""Commands that start servers, whose flags stand behind `--`, or have them started."""


class Parser(argparse.ArgumentParser):
    """Spells flags out (no abbreviations) and knows SGLang's names."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        for argument in sys.argv[1:]:
            name = argument.split("=")[0]
            if name in SGLANG_NAMES:
                message = f"{name} is SGLang's name; here it is {SGLANG_NAMES[name]}"
            elif name in REFUSED:
                message = f"{name} is refused: {REFUSED[name]}"
        self.exit(2, f"{self.prog}: {message}\n")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder (default: the bundled demo model)")
    model.add_argument("--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")
    model.add_argument("--tokenizer", metavar="PATH", help="folder of tokenizer.json (default: the model's)")
    model.add_argument("--served-model-name", nargs="+", default=[], metavar="NAME", help="names that clients may use")
    model.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    model.add_argument("--max-model-len", type=in_range(2), metavar="TOKENS", help="longest sequence, prompt + output")
    model.add_argument("--load-format", choices=["auto", "safetensors", "dummy"], default="auto")
    model.add_argument("--seed", type=in_range(0, 2**32 - 1), default=0, help="of dummy weights")
    model.add_argument("--chat-template", metavar="FILE", help="Jinja template in place of the checkpoint's")
    model.add_argument("--generation-config", metavar="auto|vllm|PATH", default="auto",
                       help="sampling defaults: auto, the checkpoint's generation_config.json (the default); vllm, the "
                            "API's own; or the folder of another such file")  # fmt: skip
    engine = parser.add_argument_group("engine")
    engine.add_argument("--device", type=device_name, default="auto", metavar="auto|cpu|cuda|null|sim:SPEC",
                        help="auto: cuda if there is a GPU, else cpu; null runs no model; sim:h100 neither, in the "
                             "time that this preset, or a spec file's GPU, would take")  # fmt: skip
    engine.add_argument("--null-step-ms", type=float, metavar="MS",
                        help="what a step takes on the null device (default: 0)")  # fmt: skip
    engine.add_argument("--tensor-parallel-size", "-tp", type=in_range(1, 64), default=1, metavar="T",
                        help="ranks, each with 1/T of the model")  # fmt: skip
    engine.add_argument("--replicas", type=in_range(1, 64), default=1, metavar="R",
                        help="engines of T ranks each, behind the same frontends")  # fmt: skip
    engine.add_argument("--routing-policy", choices=["cache-aware", "least-work", "round-robin"], default="cache-aware",
                        help="which replica gets a request: the one with the least work, its cached prompts counted in "
                             "(the default); or without them; or each in turn")  # fmt: skip
    engine.add_argument("--sampling-mode", choices=["local", "sequence-parallel", "gathered"],
                        help="ranks sample: where the logits lie (the default but on GPUs); a slice of the rows each "
                             "(on GPUs); all rows each")  # fmt: skip
    engine.add_argument("--collectives", choices=["shm", "gloo", "nccl"],
                        help="what ranks exchange through (default: shm; on GPUs nccl); gloo and nccl do not "
                             "tell which of them is stuck")  # fmt: skip
    engine.add_argument("--worker-timeout", type=in_range(1, 3600), default=30, metavar="S",
                        help="seconds without a sign of life after which a rank counts as stuck")  # fmt: skip
    engine.add_argument(
        "--kv-cache-bytes", type=size_in_bytes, metavar="SIZE", help="KV cache of all ranks of a replica, e.g. 4G"
    )
    engine.add_argument("--swap-space", type=float, default=0.0, metavar="GIB",
                        help="host memory of each rank for KV blocks of preempted sequences, where copying is cheaper "
                             "than computing them again (default: 0, always computed again)")  # fmt: skip
    engine.add_argument("--kv-cache-dtype", choices=["auto"], default="auto", help="the KV cache's is the model's")
    engine.add_argument("--gpu-memory-utilization", type=float, metavar="SHARE",
                        help="of a GPU's memory, for weights, steps and KV cache together (default: 0.9)")  # fmt: skip
    engine.add_argument("--enforce-eager", action="store_true",
                        help="launch a GPU's steps kernel by kernel, not as captured graphs")  # fmt: skip
    engine.add_argument("--block-size", type=int, choices=[8, 16, 32, 64], default=16, help="tokens in a KV block")
    engine.add_argument("--max-num-seqs", type=in_range(1, 4096), default=256, help="sequences in a step")
    engine.add_argument("--max-num-batched-tokens", type=in_range(16, 2**20), default=2048, help="tokens in a step")
    engine.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    engine.add_argument("--scheduling-policy", choices=["fcfs", "priority"], default="fcfs")
    engine.add_argument("--queue-timeout", type=float, default=0.0, metavar="S",
                        help="seconds that a request may wait for its first step; then it gets 503 (default: 0, "
                             "as long as its client waits)")  # fmt: skip
    engine.add_argument("--run-ahead", type=in_range(0, 16), default=2, metavar="K",
                        help="steps planned ahead (1 while steps take over 20 ms); 0: synchronous")  # fmt: skip
    engine.add_argument("--cpu-threads", type=in_range(1, 1024), help="threads of the model (default: all cores)")
    add_http_arguments(parser.add_argument_group("http"))
    add_operations_arguments(parser.add_argument_group("operations"))
    add_ray_arguments(parser.add_argument_group("on a Ray cluster"), in_range)


def add_http_arguments(http: argparse._ArgumentGroup) -> None:
    http.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the network (set --api-key)")
    http.add_argument("--port", type=in_range(0, 65535), default=8000, help="0 takes a free one")
    http.add_argument("--uds", metavar="PATH", help="listen on a Unix socket instead")
    http.add_argument("--ssl-certfile", metavar="FILE", help="certificate (PEM): serve HTTPS")
    http.add_argument("--ssl-keyfile", metavar="FILE", help="its key, if it is not in the same file")
    http.add_argument("--allowed-origins", action="append", type=origins, default=[], metavar="ORIGIN",
                      help="web pages from here may use the API; repeatable, or a JSON list; '*' is all")  # fmt: skip
    http.add_argument("--enable-request-id-headers", action="store_true",
                      help="X-Request-Id on every response: the client's own, or a new one")  # fmt: skip
    http.add_argument("--max-num-waiting", type=in_range(1, 2**20), default=MAX_NUM_WAITING, metavar="N",
                      help="sequences that may wait; beyond it requests get 429")  # fmt: skip
    http.add_argument("--frontends", type=in_range(1, 16), default=1, metavar="F",
                      help="HTTP processes, all on the one port")  # fmt: skip
    http.add_argument("--api-key", action="append", default=[], metavar="KEY",
                      help="require this key; repeatable; or ALBIREO_API_KEY")  # fmt: skip
    http.add_argument("--root-path", default="", help="path prefix behind a proxy")
    http.add_argument("--disable-uvicorn-access-log", action="store_true", help="no log line per request")
    http.add_argument("--disable-web-page", action="store_true", help="no page at /")
    http.add_argument("--enable-auto-tool-choice", action="store_true",
                      help="let the model call tools of itself (needs --tool-call-parser)")  # fmt: skip
    http.add_argument("--tool-call-parser", choices=["hermes", "qwen", "llama3_json", "mistral"],
                      help="how the model writes tool calls")  # fmt: skip
    http.add_argument("--reasoning-parser", choices=["qwen3", "deepseek_r1"],
                      help="how the model sets off what it thinks from what it answers")  # fmt: skip
    http.add_argument("--max-logprobs", type=in_range(0, MAX_LOGPROBS), default=MAX_LOGPROBS, metavar="N",
                      help="most logprobs per token that a request may ask for")  # fmt: skip
    http.add_argument("--shutdown-timeout", type=in_range(0, 86400), default=5, metavar="S",
                      help="seconds that running streams get to finish")  # fmt: skip


def add_operations_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--env-file", metavar="FILE",
                       help="lines KEY=value: ALBIREO_API_KEY, ALBIREO_LOG_LEVEL; SIGHUP reads it again")  # fmt: skip
    group.add_argument("--log-level", choices=["debug", "info", "warning", "error"],
                       help="from which on events are logged; or ALBIREO_LOG_LEVEL (default: info)")  # fmt: skip
    group.add_argument("--log-format", choices=["text", "json"], default="text", help="json: an object per event")


def build_parser() -> argparse.ArgumentParser:
    from albireo.bench.breakdown_cli import add_breakdown_arguments
    from albireo.bench.cli import add_serve_arguments as add_bench_serve_arguments
    from albireo.bench.offline_cli import add_latency_arguments, add_throughput_arguments
    from albireo.bench.pipeline_cli import add_pipeline_arguments
    from albireo.chat.cli import add_chat_arguments
    from albireo.doctor.cli import add_doctor_arguments
    from albireo.systemd.cli import add_systemd_arguments
    from albireo.trace.cli import add_trace_arguments
    from albireo.tune.cli import add_tune_arguments

    parser = Parser(prog="albireo-run", description="Parallel LLM inference over shared-memory pipelines.")
    parser.add_argument("--version", action="version", version=f"albireo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a model over HTTP")
    add_serve_arguments(serve)
    add_chat_arguments(commands.add_parser("chat", help="talk to a model in this terminal"))
    doctor = commands.add_parser("doctor", help="what this machine has, what would fit, what is missing")
    add_doctor_arguments(doctor, device_name)
    add_trace_arguments(commands.add_parser("trace", help="show what each process did in each step"))
    add_systemd_arguments(commands.add_parser("systemd", help="install as a systemd service"))
    tune = commands.add_parser("tune", help="find the best tensor-parallel degree for a model and its traffic")
    add_tune_arguments(tune, size_in_bytes)
    bench = commands.add_parser("bench", help="measure a server, or parts of an engine")
    benchmarks = bench.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    add_bench_serve_arguments(benchmarks.add_parser("serve", help="load on any OpenAI-compatible server"))
    add_latency_arguments(benchmarks.add_parser("latency", help="how long a batch of one size takes"))
    add_throughput_arguments(benchmarks.add_parser("throughput", help="all prompts at once, on an engine of its own"))
    add_breakdown_arguments(benchmarks.add_parser("breakdown", help="what of a step the device waits for"))
    add_pipeline_arguments(benchmarks.add_parser("pipeline", help="an engine without a model: the control plane"))
    return parser


def serve_parser() -> argparse.ArgumentParser:
    """Of flags of `serve` that another command was given."""
    parser = Parser(prog="albireo-run serve")
    add_serve_arguments(parser)
    return parser


def run_serve(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Serves until it is stopped; returns the exit code. `argv`: what stood behind `serve`."""
    import signal

    from albireo.errors import StartupError

    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # it asks to reload: nothing is loaded yet
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    try:
        if args.ray:
            from albireo.cluster.run import serve_on_ray

            return serve_on_ray(argv, args.ray_address)
        return serve_with(args)
    except StartupError as error:
        print(f"albireo: {error}", file=sys.stderr)
        return error.exit_code


def serve_with(args: argparse.Namespace) -> int:
    """Raises StartupError."""
    from pathlib import Path

    from albireo.config import environment_api_keys, environment_log_level
    from albireo.engine_args import EngineArgs
    from albireo.errors import StartupError
    from albireo.listener import ListenAddress
    from albireo.serve import DEMO_MODEL, ServeArgs, serve
    from albireo.settings import EnvFileError, LiveSettings

    if (flag := ray_flag_without_ray(args)) is not None:
        raise StartupError(f"{flag} needs --ray", exit_code=2)
    if args.enable_auto_tool_choice and args.tool_call_parser is None:
        raise StartupError("--enable-auto-tool-choice needs --tool-call-parser", exit_code=2)
    try:
        settings = LiveSettings(
            Path(args.env_file) if args.env_file else None,
            tuple(args.api_key),
            environment_api_keys(),
            args.log_level,
            environment_log_level(),
        )
    except EnvFileError as error:
        raise StartupError(str(error)) from error
    engine = EngineArgs(
        model=args.model_flag or args.model or str(DEMO_MODEL),
        tokenizer=args.tokenizer,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        load_format=args.load_format,
        seed=args.seed,
        block_size=args.block_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        enable_prefix_caching=args.enable_prefix_caching,
        scheduling_policy=args.scheduling_policy,
        queue_timeout=args.queue_timeout,
        run_ahead=args.run_ahead,
        kv_cache_bytes=args.kv_cache_bytes,
        swap_space=args.swap_space,
        cpu_threads=args.cpu_threads,
        tensor_parallel_size=args.tensor_parallel_size,
        num_replicas=args.replicas,
        sampling_mode=args.sampling_mode,
        collectives=args.collectives,
        device=args.device,
        null_step_ms=args.null_step_ms,
        gpu_memory_utilization=args.gpu_memory_utilization,
        enforce_eager=args.enforce_eager,
    )
    return serve(
        ServeArgs(
            engine=engine,
            address=ListenAddress(args.host, args.port, args.uds, args.ssl_keyfile, args.ssl_certfile),
            served_model_names=tuple(args.served_model_name),
            api_keys=settings.current.api_keys,
            root_path=args.root_path,
            access_log=not args.disable_uvicorn_access_log,
            shutdown_timeout_s=float(args.shutdown_timeout),
            worker_timeout_s=float(args.worker_timeout),
            num_frontends=args.frontends,
            max_logprobs=args.max_logprobs,
            chat_template=args.chat_template,
            generation_config=args.generation_config,
            log_level=settings.current.log_level,
            log_format=args.log_format,
            settings=settings if args.env_file else None,
            web_page=not args.disable_web_page,
            enable_auto_tool_choice=args.enable_auto_tool_choice,
            tool_call_parser="hermes" if args.tool_call_parser == "qwen" else args.tool_call_parser,
            reasoning_parser=args.reasoning_parser,
            allowed_origins=tuple(origin for each in args.allowed_origins for origin in each),
            request_id_headers=args.enable_request_id_headers,
            max_num_waiting=args.max_num_waiting,
            routing_policy=args.routing_policy,
        )
    )


def run_bench(args: argparse.Namespace, serve_flags: Sequence[str]) -> int:
    from albireo.bench.breakdown_cli import run_breakdown
    from albireo.bench.cli import run_serve as run_bench_serve
    from albireo.bench.offline_cli import run_latency, run_throughput
    from albireo.bench.pipeline_cli import run_pipeline

    match args.benchmark:
        case "breakdown":
            return run_breakdown(args, serve_flags)
        case "latency":
            return run_latency(args, serve_flags)
        case "throughput":
            return run_throughput(args, serve_flags)
        case "pipeline":
            return run_pipeline(args)
        case _:
            return run_bench_serve(args)


def run_measurement(args: argparse.Namespace, serve_flags: Sequence[str], argv: Sequence[str]) -> int:
    if args.command == "bench":
        return run_bench(args, serve_flags)
    from albireo.tune.cli import run_tune

    return run_tune(args, serve_flags, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `albireo-run`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # what stands behind `--` is for servers, not for the command
    own, serve_flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    takes_serve_flags = argv[:1] in TAKES_SERVE_FLAGS or argv[:2] in TAKES_SERVE_FLAGS
    args = build_parser().parse_args(own if takes_serve_flags else argv)
    if "--ray" in serve_flags:
        Parser(prog=f"albireo-run {argv[0]}").error("--ray is for albireo-run serve alone")
    match args.command:
        case "chat":
            from albireo.chat.cli import run_chat

            return run_chat(args, serve_flags)
        case "doctor":
            from albireo.doctor.cli import run_doctor

            return run_doctor(args)
        case "trace":
            from albireo.trace.cli import run_trace

            return run_trace(args)
        case "bench" | "tune":
            return run_measurement(args, serve_flags, argv)
        case "systemd":
            from albireo.systemd.cli import run_systemd

            return run_systemd(args, serve_flags, serve_parser())
        case _:
            return run_serve(args, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
