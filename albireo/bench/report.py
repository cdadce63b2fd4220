"""The result of a run for people (a table) and for programs (JSON with the names that vLLM's bench uses)."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from albireo.bench.gpu_use import joules_per_output_token
from albireo.bench.machine import describe_machine, describe_versions
from albireo.bench.metrics import RunMetrics, distribution
from albireo.bench.self_watch import bottleneck_warnings
from albireo.bench.serve import ServeRun
from albireo.bench.settings import ServeBenchSettings

_TITLES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token (after the first)",
    "itl": "Inter-token latency (between chunks)",
    "e2el": "End-to-end latency",
}
_MERGED_FROM = 1.05
"""Tokens per chunk from which we say that inter-token latencies are of chunks: a little above the odd merged pair."""


def remarks(settings: ServeBenchSettings, run: ServeRun, metrics: RunMetrics) -> list[str]:
    """What a reader must know before believing the figures, the most serious first; [] when they stand as they are."""
    good = [outcome for outcome in run.outcomes if outcome.error is None]
    found = []
    if metrics.failed:
        first = next(outcome.error for outcome in run.outcomes if outcome.error is not None)
        hint = " (does the server take token ids? try --prompt-format text)" if _refused_ids(settings, first) else ""
        found.append(f"{metrics.failed} of {len(run.outcomes)} requests failed; the first: {first}{hint}")
    found += bottleneck_warnings(run.client, metrics.latencies_ms["itl"])
    pairs = list(zip(run.prompts, run.outcomes, strict=True))
    counted = [(prompt, o.output_tokens) for prompt, o in pairs if o.error is None and o.counted_by_server]
    short = sum(num_tokens < settings.output_len_of(prompt) for prompt, num_tokens in counted)
    if short:
        length = "their length" if settings.output_len is None else f"{settings.output_len} tokens"
        found.append(f"{short} requests ended before {length}")
    uncounted = sum(not outcome.counted_by_server for outcome in good)
    if uncounted:
        found.append(f"the server sent no usage for {uncounted} requests: their tokens are counted as chunks")
    if metrics.tokens_per_chunk > _MERGED_FROM:
        found.append(
            f"a chunk holds {metrics.tokens_per_chunk:.2f} tokens on average: inter-token latency is per chunk, "
            "time per output token per token"
        )
    if good and all(outcome.empty_start for outcome in good):
        found.append("every first chunk was empty: the time to first token may be that of a header")
    different = len({id(prompt) for prompt in run.prompts})
    if different < len(run.prompts):
        found.append(f"the dataset has {different} prompts that can be used: some were sent several times")
    sent = sum(len(p.ids) for p, o in pairs if o.error is None)
    if metrics.total_input_tokens != sent:
        counted_by = "the server and its chat template" if settings.backend == "openai-chat" else "the server"
        found.append(f"{counted_by} counted {metrics.total_input_tokens} prompt tokens where {sent} were sent")
    return found


def _refused_ids(settings: ServeBenchSettings, error: str | None) -> bool:
    return settings.prompt_format == "ids" and bool(error) and str(error).startswith(("HTTP 400", "HTTP 422"))


def result_record(
    settings: ServeBenchSettings, run: ServeRun, metrics: RunMetrics, detailed: bool
) -> dict[str, object]:
    """JSON-ready; `detailed` adds a list with a value per request (start times, latencies, errors)."""
    record: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "label": settings.label,
        "backend": settings.backend,
        "model_id": run.model,
        "tokenizer_id": run.tokenizer,
        "num_prompts": settings.num_prompts,
        "request_rate": settings.request_rate if math.isfinite(settings.request_rate) else "inf",
        "burstiness": settings.burstiness if math.isfinite(settings.burstiness) else "inf",
        "max_concurrency": settings.max_concurrency,
        "duration": metrics.duration_s,
        "max_concurrent_requests": metrics.peak_concurrency,
    }
    plain = msgspec.to_builtins(metrics)
    record |= {name: value for name, value in plain.items() if name not in ("latencies_ms", "duration_s")}
    for name in settings.percentile_metrics:
        figures = distribution(metrics.latencies_ms[name], settings.metric_percentiles)
        record |= {f"{figure}_{name}_ms": value for figure, value in figures.items()}
    # A header may carry a credential: the record says which were sent, not what they held.
    kept = msgspec.structs.replace(settings, headers=dict.fromkeys(settings.headers, "..."))
    finite = {name: record[name] for name in ("request_rate", "burstiness")}  # JSON has no infinity
    record["settings"] = msgspec.to_builtins(kept) | finite
    client = msgspec.to_builtins(run.client)
    shares = {"cpu_share": run.client.cpu_share, "cpu_us_per_chunk": run.client.cpu_us_per_chunk}
    record["client"] = client | shares | {"connections_opened": run.connections_opened}
    if run.gpu is not None:
        figures = msgspec.to_builtins(run.gpu) | {"joules_per_output_token": joules_per_output_token(run.gpu, metrics)}
        record["gpu"] = {name: value for name, value in figures.items() if value is not None}
    record["remarks"] = remarks(settings, run, metrics)
    record["machine"], record["versions"] = describe_machine(), describe_versions()
    return record | _per_request(run) if detailed else record


def _per_request(run: ServeRun) -> dict[str, object]:
    """Seconds, as vLLM saves them; start times from the first request's."""
    first_ns = min(outcome.start_ns for outcome in run.outcomes)
    return {
        "input_lens": [outcome.prompt_tokens for outcome in run.outcomes],
        "output_lens": [outcome.output_tokens for outcome in run.outcomes],
        "start_times": [(outcome.start_ns - first_ns) / 1e9 for outcome in run.outcomes],
        "ttfts": [outcome.ttft_ns / 1e9 for outcome in run.outcomes],
        "itls": [[gap / 1e9 for gap in outcome.itl_ns] for outcome in run.outcomes],
        "errors": [outcome.error or "" for outcome in run.outcomes],
    }


def save_result(path: Path, record: dict[str, object]) -> None:
    """Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def print_report(console: Console, settings: ServeBenchSettings, run: ServeRun, metrics: RunMetrics) -> None:
    summary = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    summary.add_column()
    summary.add_column(justify="right")
    for name, value in _summary_rows(settings, run, metrics):
        summary.add_row(name, value)
    console.print(summary)
    latencies = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    latencies.add_column("milliseconds")
    for column in ("mean", *(f"p{p:g}" for p in settings.metric_percentiles)):
        latencies.add_column(column, justify="right")
    for name in settings.percentile_metrics:
        figures = distribution(metrics.latencies_ms[name], settings.metric_percentiles)
        cells: Sequence[str] = [f"{v:.2f}" for k, v in figures.items() if k not in ("median", "std")]
        latencies.add_row(_TITLES[name], *(cells or ["-"] * (1 + len(settings.metric_percentiles))))
    console.print(latencies)
    for remark in remarks(settings, run, metrics):
        console.print(f"NOTE: {remark}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _summary_rows(settings: ServeBenchSettings, run: ServeRun, metrics: RunMetrics) -> list[tuple[str, str]]:
    rows = [
        ("Requests completed / failed", f"{metrics.completed} / {metrics.failed}"),
        ("Duration (s)", f"{metrics.duration_s:.2f}"),
        ("Prompt / output tokens", f"{metrics.total_input_tokens} / {metrics.total_output_tokens}"),
        ("Prompt tokens from the server's cache", f"{metrics.total_cached_tokens}"),
        ("Requests per second", f"{metrics.request_throughput:.2f}"),
        ("Output tokens per second", f"{metrics.output_throughput:.2f}"),
        ("Total tokens per second", f"{metrics.total_token_throughput:.2f}"),
        ("Peak concurrent requests", f"{metrics.peak_concurrency}"),
    ]
    if metrics.request_goodput is not None:
        targets = ", ".join(f"{name} {limit:g} ms" for name, limit in settings.goodput.items())
        rows.append((f"Good requests per second ({targets})", f"{metrics.request_goodput:.2f}"))
    client = run.client
    busy = f"{client.cpu_share:.1%} of a core, {client.cpu_us_per_chunk:.1f} us per chunk"
    rows.append(("Client CPU", busy))
    rows.append(("Client loop lag (ms)", f"mean {client.lag_mean_ms:.2f}, p99 {client.lag_p99_ms:.2f}"))
    return rows + _gpu_rows(run, metrics)


def _gpu_rows(run: ServeRun, metrics: RunMetrics) -> list[tuple[str, str]]:
    """What the server said of its GPUs; a figure that it did not say has no row."""
    gpu, rows = run.gpu, []
    if gpu is None:
        return []
    simulated = ", simulated" if gpu.is_simulated else ""
    if gpu.energy_j is not None and gpu.energy_s is not None:
        rows.append(("GPU energy (J)", f"{gpu.energy_j:.1f} in {gpu.energy_s:.1f} s{simulated}"))
    per_token = joules_per_output_token(run.gpu, metrics)
    if per_token is not None:
        rows.append(("Joules per output token", f"{per_token:.4g}{simulated}"))
    if gpu.busy_share is not None:
        mean = f", mean of {gpu.num_gpus}" if gpu.num_gpus > 1 else ""
        rows.append(("GPU busy with steps", f"{gpu.busy_share:.1%} of the run{mean}{simulated}"))
    return rows
