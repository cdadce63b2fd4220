"""What one `bench serve` run does, as a frozen record: parsed once from argv, saved whole with the result."""

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from albireo.bench.prompts import Prompt
from albireo.server_url import url_problem

METRICS = ("ttft", "tpot", "itl", "e2el")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
"""Those with one value per request; `itl` has one per chunk."""

Backend = Literal["openai", "openai-chat"]
PromptFormat = Literal["ids", "text"]
DatasetName = Literal["random", "sharegpt", "custom"]


class SettingsError(ValueError):
    """A flag's value makes no sense; the text is one line that names the flag."""


class ServeBenchSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Names and meanings are those of `vllm bench serve`, except where a docstring says `ours`."""

    base_url: str
    """Without the endpoint, e.g. `http://127.0.0.1:8000`, or `http+unix:PATH`."""
    endpoint: str
    model: str | None
    """Name sent in each request; None asks the server's /v1/models for the first one."""
    tokenizer: str | None
    """Folder, tokenizer.json or hub id; None falls back to `model`, then to the root that the server names."""
    prompt_format: PromptFormat
    """Ours: prompts as token ids or as text; both of exactly the same tokens. A chat takes text alone."""
    input_len: int
    """Tokens of its own in each random prompt, special tokens included."""
    prefix_len: int
    """Tokens shared by all random prompts, before and beside `input_len`."""
    output_len: int | None
    """None: each prompt of the dataset has its own."""
    num_prompts: int
    num_warmups: int
    request_rate: float
    """Requests per second; infinity sends all at once (up to `max_concurrency`)."""
    burstiness: float
    """Shape of the gamma distribution of the gaps: 1 is Poisson, below is burstier, above more even."""
    max_concurrency: int | None
    ignore_eos: bool
    temperature: float | None
    """None leaves it to the server's default; so for the three below."""
    top_p: float | None
    top_k: int | None
    min_p: float | None
    extra_body: dict[str, object]
    headers: dict[str, str]
    seed: int
    percentile_metrics: tuple[str, ...]
    metric_percentiles: tuple[float, ...]
    goodput: dict[str, float]
    """Metric -> most milliseconds that a good request may take; empty: not asked for."""
    request_timeout_s: float
    insecure: bool
    label: str | None
    metadata: dict[str, str]
    dataset_name: DatasetName = "random"
    dataset_path: str | None = None
    backend: Backend = "openai"
    """Whose requests are sent: completions or, as user messages, chat completions."""

    def output_len_of(self, prompt: Prompt) -> int:
        """Tokens to generate for it."""
        length = prompt.output_len if self.output_len is None else self.output_len
        assert length is not None, "datasets say how long"
        return length


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """`ttft:200 tpot:50` (separated by spaces or commas) -> {"ttft": 200.0, "tpot": 50.0}, milliseconds."""
    targets: dict[str, float] = {}
    for pair in (part for text in pairs for part in text.split(",") if part):
        name, colon, value = pair.partition(":")
        limit = parse_float(value, "--goodput") if colon else -1.0
        if name not in GOODPUT_METRICS or not 0 <= limit < math.inf:  # NaN too
            raise SettingsError(f"--goodput takes METRIC:MILLISECONDS with {', '.join(GOODPUT_METRICS)}, not {pair!r}")
        targets[name] = limit
    return targets


def parse_metrics(text: str) -> tuple[str, ...]:
    """`ttft,itl` -> ("ttft", "itl")."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise SettingsError(f"--percentile-metrics knows {', '.join(METRICS)}, not {unknown[0]!r}")
    return names


def parse_percentiles(text: str) -> tuple[float, ...]:
    """`50,99` -> (50.0, 99.0)."""
    values = tuple(parse_float(part, "--metric-percentiles") for part in text.split(",") if part.strip())
    if any(not 0 <= value <= 100 for value in values):
        raise SettingsError(f"--metric-percentiles takes numbers from 0 to 100, not {text!r}")
    return values


def parse_key_values(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """`a=1 b=2` -> {"a": "1", "b": "2"}."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip() or any(c in pair for c in "\r\n"):
            raise SettingsError(f"{flag} takes KEY=VALUE, not {pair!r}")
        parsed[key.strip()] = value.strip()
    return parsed


def parse_float(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{flag} takes numbers, not {text!r}") from None


def check(settings: ServeBenchSettings) -> None:
    """Raise SettingsError for a combination that cannot run."""
    least = {"--num-prompts": (settings.num_prompts, 1), "--num-warmups": (settings.num_warmups, 0)}
    least |= {
        "--input-len": (settings.input_len, 1),
        "--output-len": (1 if settings.output_len is None else settings.output_len, 1),
    }
    least |= {"--prefix-len": (settings.prefix_len, 0)}
    if settings.max_concurrency is not None:
        least["--max-concurrency"] = (settings.max_concurrency, 1)
    for flag, (value, bound) in least.items():
        if value < bound:
            raise SettingsError(f"{flag} must be at least {bound}, not {value}")
    for flag, rate in {"--request-rate": settings.request_rate, "--burstiness": settings.burstiness}.items():
        if not rate > 0:  # NaN too
            raise SettingsError(f"{flag} must be above 0, not {rate:g}")
    if settings.dataset_name != "random" and settings.dataset_path is None:
        raise SettingsError(f"--dataset-name {settings.dataset_name} needs the file: name it with --dataset-path")
    if settings.dataset_name == "random" and settings.dataset_path is not None:
        raise SettingsError("--dataset-path needs --dataset-name sharegpt or custom")
    if (problem := url_problem(settings.base_url)) is not None:
        raise SettingsError(f"--base-url {problem}")
    _check_backend(settings)


def _check_backend(settings: ServeBenchSettings) -> None:
    is_chat = settings.backend == "openai-chat"
    if is_chat != settings.endpoint.rstrip("/").endswith("/chat/completions"):
        theirs = "openai" if is_chat else "openai-chat"
        raise SettingsError(f"--endpoint {settings.endpoint} needs --backend {theirs}, not {settings.backend}")
    if is_chat and settings.prompt_format == "ids":
        raise SettingsError("--prompt-format ids needs --backend openai: a chat's messages are text")
