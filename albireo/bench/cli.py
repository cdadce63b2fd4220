"""argv of `albireo-run bench serve`: its flags, and the run behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from albireo.bench.settings import ServeBenchSettings

EXIT_OK, EXIT_FAILED, EXIT_BAD_ARGUMENTS = 0, 1, 2


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bench serve`: those of `vllm bench serve`, and ours where the help says so."""
    _add_server_flags(parser.add_argument_group("server"))
    _add_workload_flags(parser.add_argument_group("workload"))
    _add_sampling_flags(parser.add_argument_group("sampling"))
    _add_result_flags(parser.add_argument_group("result"))


def run_serve(args: argparse.Namespace) -> int:
    """Runs the benchmark and returns the exit code: 0, 1 if anything failed, 2 for flags that make no sense."""
    from albireo.bench.prompts import PromptError
    from albireo.bench.serve import BenchError
    from albireo.bench.settings import SettingsError

    try:
        return _measure(args, _settings(args))
    except SettingsError as error:
        print(f"albireo-run bench serve: {error}", file=sys.stderr)
        return EXIT_BAD_ARGUMENTS
    except (BenchError, PromptError, OSError) as error:
        print(f"albireo-run bench serve: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("albireo-run bench serve: interrupted, no result", file=sys.stderr)
        return EXIT_FAILED


def _measure(args: argparse.Namespace, settings: "ServeBenchSettings") -> int:
    from pathlib import Path

    from rich.console import Console

    from albireo.bench.metrics import summarise
    from albireo.bench.plot import check_plot, draw_run
    from albireo.bench.report import print_report, result_record, save_result
    from albireo.bench.serve import serve_bench
    from albireo.config import environment_openai_api_key

    if args.plot:
        check_plot(args.plot)
    run = serve_bench(settings, args.api_key or environment_openai_api_key())
    metrics = summarise(run.outcomes, settings.goodput)
    print_report(Console(), settings, run, metrics)
    if args.save_result:
        record = result_record(settings, run, metrics, args.save_detailed)
        name = args.result_filename or f"{settings.label or 'albireo-bench'}-{record['date']}.json"
        path = Path(args.result_dir or ".") / name
        save_result(path, record)
        print(f"saved {path}", file=sys.stderr)
    if args.plot:
        draw_run(Path(args.plot), run, metrics)
        print(f"drew {args.plot}", file=sys.stderr)
    return EXIT_FAILED if metrics.failed else EXIT_OK


def _settings(args: argparse.Namespace) -> "ServeBenchSettings":
    """Raises SettingsError."""
    from albireo.bench import settings as parse

    is_random, is_chat = args.dataset_name == "random", args.backend == "openai-chat"
    for flag, value in {"--input-len": args.input_len, "--prefix-len": args.prefix_len}.items():
        if value is not None and not is_random:
            raise parse.SettingsError(f"{flag} is for --dataset-name random: the prompts of {args.dataset_name} are as "
                                      "long as they are")  # fmt: skip
    if args.extra_body is not None and not isinstance(args.extra_body, dict):
        raise parse.SettingsError("--extra-body takes a JSON object")
    host = f"[{args.host}]" if ":" in args.host else args.host
    settings = parse.ServeBenchSettings(
        base_url=(args.base_url or f"http://{host}:{args.port}").rstrip("/"),
        endpoint=args.endpoint or ("/v1/chat/completions" if is_chat else "/v1/completions"),
        model=args.served_model_name or args.model,
        # A local --model names the tokenizer even when the server knows the model by another name.
        tokenizer=args.tokenizer or args.model,
        prompt_format=args.prompt_format or ("text" if is_chat else "ids"),
        input_len=1024 if args.input_len is None else args.input_len,
        prefix_len=args.prefix_len or 0,
        output_len=128 if is_random and args.output_len is None else args.output_len,
        num_prompts=args.num_prompts,
        num_warmups=args.num_warmups,
        request_rate=args.request_rate,
        burstiness=args.burstiness,
        max_concurrency=args.max_concurrency,
        ignore_eos=is_random if args.ignore_eos is None else args.ignore_eos,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        extra_body=args.extra_body or {},
        headers=parse.parse_key_values(args.header, "--header"),
        seed=args.seed,
        percentile_metrics=parse.parse_metrics(args.percentile_metrics),
        metric_percentiles=parse.parse_percentiles(args.metric_percentiles),
        goodput=parse.parse_goodput(args.goodput),
        request_timeout_s=args.request_timeout,
        insecure=args.insecure,
        label=args.label,
        metadata=parse.parse_key_values(args.metadata, "--metadata"),
        dataset_name=args.dataset_name,
        dataset_path=args.dataset_path,
        backend=args.backend,
    )
    parse.check(settings)
    return settings


def _add_server_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--backend", choices=["openai", "openai-chat"], default="openai",
        help="send completions (the default) or chat completions, each prompt as a user message",
    )  # fmt: skip
    group.add_argument(
        "--base-url",
        help="server's URL, in place of --host and --port: http://127.0.0.1:8000, or http+unix:PATH of a Unix socket",
    )
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=8000)
    group.add_argument("--endpoint", help="default: /v1/completions, or the backend's /v1/chat/completions")
    group.add_argument("--model", help="model's name, or its folder; default: the first of the server's /v1/models")
    group.add_argument("--served-model-name", help="model's name in requests, when --model is a folder")
    group.add_argument("--tokenizer", help="folder with tokenizer.json, or hub id; default: --model")
    group.add_argument("--api-key", help="default: OPENAI_API_KEY of the environment")
    group.add_argument("--header", nargs="*", default=[], metavar="KEY=VALUE", help="extra HTTP headers")
    group.add_argument("--insecure", action="store_true", help="do not verify the server's certificate")
    group.add_argument(
        "--request-timeout", type=float, default=6 * 3600.0, metavar="SECONDS", help="(ours) most that one may take"
    )


def _add_workload_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--dataset-name", default="random", choices=["random", "sharegpt", "custom"])
    group.add_argument(
        "--dataset-path", metavar="FILE",
        help='sharegpt: the JSON of conversations; custom: JSONL of {"prompt": ..., "output_tokens": ...}',
    )  # fmt: skip
    group.add_argument("--num-prompts", type=int, default=1000)
    group.add_argument("--num-warmups", type=int, default=0, help="requests before the measured ones, other prompts")
    group.add_argument(
        "--input-len",
        "--random-input-len",
        type=int,
        metavar="TOKENS",
        help="of its own in each random prompt, exactly (default: 1024)",
    )
    group.add_argument(
        "--prefix-len",
        "--random-prefix-len",
        type=int,
        metavar="TOKENS",
        help="shared by all random prompts, before those (default: 0)",
    )
    group.add_argument(
        "--output-len", "--random-output-len", "--sharegpt-output-len", "--custom-output-len", type=int,
        metavar="TOKENS", help="to generate (default: 128, or what the dataset says of each prompt)",
    )  # fmt: skip
    group.add_argument(
        "--prompt-format",
        choices=["ids", "text"],
        help="(ours) send prompts as token ids (the default) or as text (a chat's only one)",
    )
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="generate --output-len tokens whatever they are; by default for random prompts only, as in vLLM",
    )
    group.add_argument("--request-rate", type=float, default=float("inf"), help="per second; inf sends all at once")
    group.add_argument(
        "--burstiness", type=float, default=1.0, help="gamma shape of the gaps: 1 Poisson, below burstier, above evener"
    )
    group.add_argument("--max-concurrency", type=int, help="most requests at once")
    group.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")


def _add_sampling_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--temperature", type=float, help="not sent by default, nor the next three: the server decides")
    group.add_argument("--top-p", type=float)
    group.add_argument("--top-k", type=int)
    group.add_argument("--min-p", type=float)
    group.add_argument("--extra-body", type=json.loads, metavar="JSON", help="further fields of each request")


def _add_result_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--percentile-metrics", default="ttft,tpot,itl,e2el")
    group.add_argument("--metric-percentiles", default="50,99")
    group.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:MS", help="targets a good request meets: ttft, tpot, e2el"
    )
    group.add_argument("--plot", metavar="FILE.png", help="(ours) draw latencies and tokens per second over time")
    group.add_argument("--save-result", action="store_true", help="write a JSON file")
    group.add_argument("--save-detailed", action="store_true", help="with a value per request in it")
    group.add_argument("--result-dir", help="default: the current folder")
    group.add_argument("--result-filename", help="default: LABEL-DATE.json")
    group.add_argument("--label")
    group.add_argument("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="kept in the result")
