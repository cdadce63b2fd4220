"""Decode steps of a running server, from its flight records: how long they take against the floor, and how long the
device waits between them. The load comes over HTTP and is streamed.

Measured are steps in which exactly `batch` rows decode and nothing else runs, that follow on another such step.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from albireo.bench.serve import serve_bench
from albireo.engine_file import EngineInfo, find_engines
from albireo.trace.overlap import Overlap, measure
from albireo.trace.steps import Steps, find_steps
from gpu_sections.floors import floor_ms, prefill_steps
from gpu_sections.job import Job
from gpu_sections.load import first_error, settings
from gpu_sections.model import read_model
from gpu_sections.options import MAX_BATCHED_TOKENS

ITEMSIZE = 2
"""Weights and KV cache are bfloat16."""


class Decoding(Struct, frozen=True):
    """The measured steps of one batch."""

    batch: int
    overlap: Overlap
    context_tokens: float
    """Of the whole batch, mean over the steps: what attention reads."""
    step_us: list[float]
    gap_us: list[float]


def main() -> None:
    job = Job.open()
    engine = find_engine(job.given.pid)
    model = read_model(Path(job.given.model))
    bandwidth = 0.0
    if job.wants("step") and job.given.run_ahead:
        bandwidth = measure_bandwidth(job)
    load(job, 2, 32, 8, seed=1)  # whatever is made at its first use is made now
    for batch in job.options.workload.batches:
        found = decode(job, engine, batch)
        job.detail(f"decode, run-ahead {job.given.run_ahead}, batch {batch}", found)
        if bandwidth:
            floor = floor_ms(model, batch, found.context_tokens, ITEMSIZE, bandwidth)
            step_row(job, found, floor)
        if job.wants("exposed"):
            exposed_row(job, found)


def find_engine(pid: int) -> EngineInfo:
    """Raises SystemExit: the job cannot go on."""
    for engine in find_engines():
        if engine.pid == pid:
            return engine
    raise SystemExit(f"no engine with pid {pid} can be read")


def measure_bandwidth(job: Job) -> float:
    """Bytes a second, in a process of its own whose memory is free again afterwards."""
    ran = subprocess.run(
        [sys.executable, "-m", "gpu_sections.bandwidth", job.options.device],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        job.row("step", "copy bandwidth", "failed", "", "", last)
        return 0.0
    bandwidth = float(ran.stdout)
    job.row("step", "copy bandwidth, bytes read and written", f"{bandwidth / 1e9:,.0f} GB/s")
    return bandwidth


def decode(job: Job, engine: EngineInfo, batch: int) -> Decoding:
    """Raises SystemExit when a request failed or no step can be measured."""
    workload = job.options.workload
    waiting = prefill_steps(batch, workload.context, MAX_BATCHED_TOKENS)
    output_len = waiting + workload.steps + 8
    begin_ns = load(job, batch, workload.context, output_len, seed=1000 * job.given.run_ahead + batch)
    steps = find_steps(engine.read_flight())
    steps = steps.take(steps.begin_ns > begin_ns)
    contexts = context_tokens(steps, batch, workload.context)
    measured = steps.decoding(batch)
    if not len(measured):
        raise SystemExit(f"no two steps in a row had {batch} rows that decode and nothing else")
    return Decoding(
        batch,
        measure(engine.read_flight(), measured),
        float(contexts[np.isin(steps.number, measured.number)].mean()),
        (measured.period_ns / 1e3).round(1).tolist(),
        (measured.gap_ns / 1e3).round(1).tolist(),
    )


def load(job: Job, batch: int, input_len: int, output_len: int, seed: int) -> int:
    """`batch` requests at once; returns when the first was sent, in the records' clock. Raises SystemExit."""
    run = serve_bench(settings(job.given.url, job.given.model, batch, input_len, output_len, seed), None)
    if problem := first_error(run.outcomes):
        raise SystemExit(problem)
    return min(outcome.start_ns for outcome in run.outcomes)


def context_tokens(steps: Steps, batch: int, input_len: int) -> npt.NDArray[np.int64]:
    """[n] tokens whose keys and values each step would read if all of `batch` requests were under way: their prompts,
    their first tokens (from the prompts' last steps), and one for each row of each step before."""
    decodes = np.maximum(steps.num_decodes, 0)
    before: npt.NDArray[np.int64] = np.cumsum(decodes) - decodes
    return batch * (input_len + 1) + before


def step_row(job: Job, found: Decoding, floor: float) -> None:
    period, device = found.overlap.period, found.overlap.device
    context = found.context_tokens / found.batch
    job.row(
        "step",
        f"decode, batch {found.batch}, context {context:,.0f}, {found.overlap.num_steps} steps",
        f"p50 {period.p50_us / 1e3:.3f} ms (device {device.p50_us / 1e3:.3f})",
        f"floor {floor:.3f} ms",
        f"{period.p50_us / 1e3 / floor:.2f} x floor",
    )


def exposed_row(job: Job, found: Decoding) -> None:
    gap, period = found.overlap.gap, found.overlap.period
    job.row(
        "exposed",
        f"run-ahead {job.given.run_ahead}, batch {found.batch}, {found.overlap.num_steps} steps",
        f"p50 {gap.p50_us:.0f} us, p99 {gap.p99_us:.0f} us",
        f"step p50 {period.p50_us:,.0f} us",
        f"p50 {gap.p50_us / period.p50_us:.2%}, p99 {gap.p99_us / period.p50_us:.2%}",
    )


if __name__ == "__main__":
    main()
