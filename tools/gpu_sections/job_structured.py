"""Structured output on the running server: are answers under a JSON schema valid, and what does it cost the others?

Measured streams ask for nothing; beside them others run all the time, constrained or not. The two turns are the same
but for the schema, and come twice each, so that a server that warms up helps neither.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from msgspec import Struct

from albireo.bench.metrics import summarise
from albireo.bench.serve import serve_bench
from gpu_sections.job import Job
from gpu_sections.load import first_error, settings
from gpu_sections.servers import model_name, post

MOST_RISE = 1.10
"""Of the mean inter-token latency beside constrained streams, against the same beside others."""
NUM_ANSWERS = 16
ANSWER_TOKENS = 768
"""A random model likes blanks, as many as are allowed."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 9999},
        "is_new": {"type": "boolean"},
        "kind": {"enum": ["star", "planet", "comet"]},
    },
    "required": ["name", "count", "is_new", "kind"],
    "additionalProperties": False,
}
LONG_SCHEMA: dict[str, Any] = {
    "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": False,
}  # fmt: skip
"""A random model hardly ever closes the string: such an answer is as long as it may be."""


class Beside(Struct):
    """One turn."""

    mean_ms: float
    """Inter-token latency of the measured streams, as are the next."""
    p50_ms: float
    p99_ms: float
    beside_rate: float
    """Tokens per second of a stream beside them, prompt included; the median of their answers."""


def main() -> None:
    job = Job.open()
    name = model_name(job.given.url)
    check_answers(job, name)
    turns: dict[bool, list[Beside]] = {False: [], True: []}
    for number in range(4):
        constrained = number % 2 == 1
        turns[constrained].append(measure(job, name, constrained, seed=500 + number))
    report(job, turns)


def check_answers(job: Job, name: str) -> None:
    """Temperature 1, all at once, each with a seed of its own."""

    def ask(seed: int) -> str | None:
        """What is wrong with the answer."""
        body = {"model": name, "prompt": [7 + seed, 8, 9], "max_tokens": ANSWER_TOKENS, "temperature": 1.0}
        try:
            answer = post(job.given.url, body | {"seed": seed, "response_format": response_format(SCHEMA)})
        except OSError as error:
            return str(error)
        choice = answer["choices"][0]
        if choice["finish_reason"] != "stop":
            return f"ended by {choice['finish_reason']}: {choice['text'][:100]!r}"
        return None if is_valid(choice["text"]) else f"not valid: {choice['text'][:100]!r}"

    with ThreadPoolExecutor(NUM_ANSWERS) as pool:
        problems = [problem for problem in pool.map(ask, range(NUM_ANSWERS)) if problem is not None]
    value = f"{NUM_ANSWERS - len(problems)} of {NUM_ANSWERS} answers valid"
    job.row("structured", "JSON schema, temperature 1", value, "all", "NOT PASSED" if problems else "passed",
            *problems[:3])  # fmt: skip


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def is_valid(text: str) -> bool:
    """Against SCHEMA."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(found, dict)
        and set(found) == set(SCHEMA["required"])
        and isinstance(found["name"], str)
        and len(found["name"]) <= SCHEMA["properties"]["name"]["maxLength"]
        and type(found["count"]) is int
        and 0 <= found["count"] <= SCHEMA["properties"]["count"]["maximum"]
        and isinstance(found["is_new"], bool)
        and found["kind"] in SCHEMA["properties"]["kind"]["enum"]
    )


def measure(job: Job, name: str, constrained: bool, seed: int) -> Beside:
    """Half of a batch is measured, the other half runs beside it. Raises SystemExit when a request failed."""
    workload, given = job.options.workload, job.given
    count = num_streams(job)
    body: dict[str, object] = {"model": name, "max_tokens": workload.output_len, "temperature": 1.0}
    body |= {"response_format": response_format(LONG_SCHEMA)} if constrained else {"ignore_eos": True}
    asked = settings(given.url, given.model, count, workload.input_len, workload.output_len, seed)
    with Streams(given.url, body, count, workload.input_len, seed) as streams:
        run = serve_bench(asked, None)
    if problem := first_error(run.outcomes) or streams.problem:
        raise SystemExit(problem)
    gaps = summarise(run.outcomes, {}).latencies_ms["itl"]
    p50, p99 = np.percentile(gaps, (50, 99)).tolist()
    return Beside(float(np.mean(gaps)), p50, p99, float(np.median(streams.rates)))


def num_streams(job: Job) -> int:
    """Measured ones, and as many beside them."""
    batches = job.options.workload.batches
    return max(1, batches[len(batches) // 2] // 2)


class Streams:
    """`with Streams(..):` so many requests are always under way."""

    def __init__(self, url: str, body: dict[str, Any], count: int, input_len: int, seed: int) -> None:
        self._url, self._body, self._input_len = url, body, input_len
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._is_over = False
        self.rates: list[float] = []
        """Of the answers that have come, tokens per second."""
        self.problem: str | None = None
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> "Streams":
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)  # their prompts are computed before the others come
        return self

    def __exit__(self, *unused: object) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._is_over and self.problem is None:
            with self._lock:
                prompt = self._random.integers(5, 1000, self._input_len).tolist()
            begin = time.monotonic()
            try:
                answer = post(self._url, self._body | {"prompt": prompt})
            except OSError as error:
                self.problem = f"beside the measured streams: {error}"
                return
            self.rates.append(answer["usage"]["completion_tokens"] / (time.monotonic() - begin))


def report(job: Job, turns: dict[bool, list[Beside]]) -> None:
    """The better of a kind's turns counts: what disturbs a turn is not the server."""
    plain, constrained = (min(turns[kind], key=lambda turn: turn.mean_ms) for kind in (False, True))
    job.detail("structured", {"plain": turns[False], "constrained": turns[True]})
    rise = constrained.mean_ms / plain.mean_ms
    job.row(
        "structured",
        f"ITL beside constrained streams, {num_streams(job)} of each",
        f"mean {constrained.mean_ms:.2f}, p50 {constrained.p50_ms:.2f}, p99 {constrained.p99_ms:.2f} ms",
        f"beside others {plain.mean_ms:.2f}, {plain.p50_ms:.2f}, {plain.p99_ms:.2f} ms: {rise:.3f} x",
        "passed" if rise <= MOST_RISE else "NOT PASSED",
    )
    job.row(
        "structured",
        "a stream beside them, prompt included",
        f"constrained {constrained.beside_rate:.1f} tok/s",
        f"other {plain.beside_rate:.1f} tok/s",
        f"{constrained.beside_rate / plain.beside_rate:.2f} x",
    )


if __name__ == "__main__":
    main()
