"""`albireo-run`: argv to frozen configs, errors to exit codes. Imports nothing heavy before it knows what to run.

Exit codes: 0 clean stop, 2 bad arguments, 3 failed start, 1 anything else.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from albireo import __version__
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
    "--replicas": "one replica is served; start more behind a balancer",
    "--trust-remote-code": "code in a checkpoint is never run; the model families that are supported need none",
}
"""Flags that other servers have and that are left out on purpose."""


STARTS_SERVERS = ("breakdown", "latency", "throughput")
"""Benchmarks that start servers, whose flags stand behind `--`."""


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


def in_range(low: int, high: int | None = None) -> "argparse._ActionType":
    """An int argument between two bounds, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            bound = f"at least {low}" if high is None else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{value} is out of range: {bound} is possible")
        return value

    parse.__name__ = "int"
    return parse


def size_in_bytes(text: str) -> int:
    """1073741824, 1024M, 1G, 1GiB: a number of bytes with an optional binary unit."""
    number = text.upper().removesuffix("IB").removesuffix("B")
    factor = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(number[-1:], 1)
    try:
        value = int(float(number.rstrip("KMGT")) * factor)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 1073741824, 512M and 4G are") from None
    if value < 1:
        raise argparse.ArgumentTypeError("a size must be positive")
    return value


def origins(text: str) -> list[str]:
    """One origin, or a JSON list of them, as vLLM takes it."""
    if not text.startswith("["):
        return [text]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON list: {error}") from None
    if not all(isinstance(each, str) for each in value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a list of texts")
    return list(value)


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
    engine.add_argument("--device", choices=["auto", "cpu", "null", "cuda"], default="auto",
                        help="auto: cuda if there is a GPU, else cpu; null runs no model")  # fmt: skip
    engine.add_argument("--null-step-ms", type=float, metavar="MS",
                        help="what a step takes on the null device (default: 0)")  # fmt: skip
    engine.add_argument("--tensor-parallel-size", "-tp", type=in_range(1, 64), default=1, metavar="T",
                        help="ranks, each with 1/T of the model")  # fmt: skip
    engine.add_argument("--sampling-mode", choices=["local", "sequence-parallel", "gathered"],
                        help="ranks sample: where the logits lie (the default but on GPUs); a slice of the rows each "
                             "(on GPUs); all rows each")  # fmt: skip
    engine.add_argument("--collectives", choices=["shm", "gloo", "nccl"],
                        help="what ranks exchange through (default: shm; on GPUs nccl); gloo and nccl do not "
                             "tell which of them is stuck")  # fmt: skip
    engine.add_argument("--worker-timeout", type=in_range(1, 3600), default=30, metavar="S",
                        help="seconds without a sign of life after which a rank counts as stuck")  # fmt: skip
    engine.add_argument("--kv-cache-bytes", type=size_in_bytes, metavar="SIZE", help="KV cache of all ranks, e.g. 4G")
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
    engine.add_argument("--run-ahead", type=in_range(0, 16), default=2, metavar="K",
                        help="steps planned ahead (1 while steps take over 5 ms); 0: synchronous")  # fmt: skip
    engine.add_argument("--cpu-threads", type=in_range(1, 1024), help="threads of the model (default: all cores)")
    http = parser.add_argument_group("http")
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
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")


def build_parser() -> argparse.ArgumentParser:
    from albireo.bench.breakdown_cli import add_breakdown_arguments
    from albireo.bench.cli import add_serve_arguments as add_bench_serve_arguments
    from albireo.bench.offline_cli import add_latency_arguments, add_throughput_arguments
    from albireo.bench.pipeline_cli import add_pipeline_arguments
    from albireo.chat.cli import add_chat_arguments
    from albireo.doctor.cli import add_doctor_arguments
    from albireo.trace.cli import add_trace_arguments

    parser = Parser(prog="albireo-run", description="Parallel LLM inference over shared-memory pipelines.")
    parser.add_argument("--version", action="version", version=f"albireo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a model over HTTP")
    add_serve_arguments(serve)
    add_chat_arguments(commands.add_parser("chat", help="talk to a model in this terminal"))
    add_doctor_arguments(commands.add_parser("doctor", help="what this machine has, what would fit, what is missing"))
    add_trace_arguments(commands.add_parser("trace", help="show what each process did in each step"))
    bench = commands.add_parser("bench", help="measure a server, or parts of an engine")
    benchmarks = bench.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    add_bench_serve_arguments(benchmarks.add_parser("serve", help="load on any OpenAI-compatible server"))
    add_latency_arguments(benchmarks.add_parser("latency", help="how long a batch of one size takes"))
    add_throughput_arguments(benchmarks.add_parser("throughput", help="all prompts at once, on an engine of its own"))
    add_breakdown_arguments(benchmarks.add_parser("breakdown", help="what of a step the device waits for"))
    add_pipeline_arguments(benchmarks.add_parser("pipeline", help="an engine without a model: the control plane"))
    return parser


def run_serve(args: argparse.Namespace) -> int:
    from albireo.config import environment_api_keys
    from albireo.engine_args import EngineArgs
    from albireo.errors import StartupError
    from albireo.listener import ListenAddress
    from albireo.serve import DEMO_MODEL, ServeArgs, serve

    if args.enable_auto_tool_choice and args.tool_call_parser is None:
        raise StartupError("--enable-auto-tool-choice needs --tool-call-parser", exit_code=2)
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
        run_ahead=args.run_ahead,
        kv_cache_bytes=args.kv_cache_bytes,
        cpu_threads=args.cpu_threads,
        tensor_parallel_size=args.tensor_parallel_size,
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
            api_keys=tuple(args.api_key) or environment_api_keys(),
            root_path=args.root_path,
            access_log=not args.disable_uvicorn_access_log,
            shutdown_timeout_s=float(args.shutdown_timeout),
            worker_timeout_s=float(args.worker_timeout),
            num_frontends=args.frontends,
            max_logprobs=args.max_logprobs,
            chat_template=args.chat_template,
            generation_config=args.generation_config,
            log_level=args.log_level,
            web_page=not args.disable_web_page,
            enable_auto_tool_choice=args.enable_auto_tool_choice,
            tool_call_parser="hermes" if args.tool_call_parser == "qwen" else args.tool_call_parser,
            reasoning_parser=args.reasoning_parser,
            allowed_origins=tuple(origin for each in args.allowed_origins for origin in each),
            request_id_headers=args.enable_request_id_headers,
            max_num_waiting=args.max_num_waiting,
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `albireo-run`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # what stands behind `--` is for the servers that these commands start
    own, serve_flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    starts_servers = argv[:1] == ["chat"] or argv[:2] in (["bench", name] for name in STARTS_SERVERS)
    args = build_parser().parse_args(own if starts_servers else argv)
    if args.command == "chat":
        from albireo.chat.cli import run_chat

        return run_chat(args, serve_flags)
    if args.command == "doctor":
        from albireo.doctor.cli import run_doctor

        return run_doctor(args)
    if args.command == "trace":
        from albireo.trace.cli import run_trace

        return run_trace(args)
    if args.command == "bench":
        return run_bench(args, serve_flags)
    from albireo.errors import StartupError

    try:
        return run_serve(args)
    except StartupError as error:
        print(f"albireo: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
