"""Many requests at once on the running server: output tokens per second, and joules per output token."""

from typing import Any, Self

import msgspec

from albireo.bench.gpu_use import joules_per_output_token
from albireo.bench.metrics import distribution, summarise
from albireo.bench.serve import serve_bench
from gpu_sections.job import Job
from gpu_sections.load import first_error, settings


class NvmlEnergy:
    """Joules of GPU 0 while a with block ran, as the driver counts them; None where NVML says nothing."""

    joules: float | None = None

    def __enter__(self) -> Self:
        self._begin_mj = self._read()
        return self

    def __exit__(self, *unused: object) -> None:
        end_mj = self._read()
        if self._begin_mj is not None and end_mj is not None:
            self.joules = (end_mj - self._begin_mj) / 1e3

    @staticmethod
    def _read() -> int | None:
        try:
            import pynvml

            pynvml.nvmlInit()
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)))
        except Exception:  # no package, no driver, no counter: all mean that there is no figure
            return None


def main() -> None:
    job = Job.open()
    workload, run_ahead = job.options.workload, job.given.run_ahead
    counts = {workload.requests, workload.peer_requests} if run_ahead and job.wants("throughput") else set()
    for count in sorted(counts or {workload.requests}, reverse=True):
        rate = measure(job, count, with_energy=count == workload.requests)
        if run_ahead:
            job.fact(f"throughput {count}", rate)


def measure(job: Job, count: int, with_energy: bool) -> float:
    """Output tokens per second. Raises SystemExit when a request failed."""
    workload, given = job.options.workload, job.given
    seed = 77_000 + 1000 * given.run_ahead + count
    asked = settings(given.url, given.model, count, workload.input_len, workload.output_len, seed, warmups=4)
    with NvmlEnergy() as nvml:
        run = serve_bench(asked, None)
    if problem := first_error(run.outcomes):
        raise SystemExit(problem)
    metrics = summarise(run.outcomes, {})
    what = f"{count} requests, {workload.input_len} in, {workload.output_len} out"
    ttft, tpot = (distribution(metrics.latencies_ms[name], (50, 99)) for name in ("ttft", "tpot"))
    details: dict[str, Any] = {"ttft_ms": ttft, "tpot_ms": tpot, "gpu": msgspec.to_builtins(run.gpu)}
    details |= {"duration_s": metrics.duration_s, "output_throughput": metrics.output_throughput}
    job.detail(f"throughput, run-ahead {given.run_ahead}, {count} requests", details)
    if job.wants("throughput") and given.run_ahead:
        value = f"{metrics.output_throughput:,.0f} tok/s"
        job.row(
            "throughput", f"Albireo, {what}", value, f"TTFT p50 {ttft['p50']:,.0f} ms", f"TPOT {tpot['p50']:.1f} ms"
        )
    if job.wants("energy") and with_energy:
        joules = joules_per_output_token(run.gpu, metrics)
        source = "/metrics"
        if joules is None and nvml.joules is not None and job.options.device == "cuda":
            joules, source = nvml.joules / max(1, metrics.total_output_tokens), "NVML, prompts' making included"
        value = "no figure: the server and NVML say nothing" if joules is None else f"{joules:.4f} J/token"
        job.row("energy", f"run-ahead {given.run_ahead}, {what}", value, source if joules is not None else "")
        if joules is not None:
            job.fact(f"joules {given.run_ahead}", joules)
    return metrics.output_throughput


if __name__ == "__main__":
    main()
