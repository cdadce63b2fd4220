#!/usr/bin/env python3
"""The one command to run first on a machine with a GPU: is Albireo right there, and how fast is it?

    python tools/gpu_check.py --out DIR                          everything, in under nine minutes
    python tools/gpu_check.py --quick --out DIR                  tests, one family's parity, decode steps; two minutes
    python tools/gpu_check.py --device cpu --model-shape tiny    to see the tool work where there is no GPU

Sections, in the order of their importance; what no longer fits into --budget-s is skipped and told:

    tests       pytest on tests/gpu_worker/cuda
    parity      greedy tokens and logprobs over HTTP against transformers: four small random models in float32 and
                bfloat16
    step        decode steps of a random model of --model-shape, against the time that reading its bytes takes at the
                bandwidth of a copy, measured in the same minute
    exposed     what the device waits for between decode steps, with run-ahead 2 and 0
    structured  answers under a JSON schema, and the inter-token latency of streams beside such ones
    throughput  many requests at once, against transformers' continuous batching
    start       command to first token with the weights on disk
    energy      joules per output token, with run-ahead 2 and 0
    kernels     tools/bench_cuda_*.py

Every section runs as a process of its own with a time-out: one that fails leaves its log's last lines in the table and
does not stop the others. The table is the output's end, and is in DIR/table.txt after every section; results.json has
all details; log.txt, servers.txt, tests.txt and kernels.txt have what was said. Flags behind `--` go to the measured
servers.
Exit codes: 0, 1 if anything failed, 2 bad arguments, 3 no CUDA device.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_sections.budget import Budget
from gpu_sections.job import JobInput
from gpu_sections.jobs import environment, run_job
from gpu_sections.model import write_model_folder, write_weights
from gpu_sections.options import MAX_BATCHED_TOKENS, Options, add_flags, options_from
from gpu_sections.report import Report, Row
from gpu_sections.servers import Server, ServerError

EXIT_OK, EXIT_FAILED, EXIT_BAD_ARGUMENTS, EXIT_NO_DEVICE = 0, 1, 2, 3
NO_TIME = "skipped: no time"
SERVER_START_S = 120.0
_FACTS = """
import sys, torch, importlib.metadata as m
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit(3)
    free, total = (n / 2**30 for n in torch.cuda.mem_get_info())
    print(f"{torch.cuda.get_device_name()}, {total:.0f} GiB, {free:.0f} free, CUDA {torch.version.cuda}")
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return "none"
print(", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "transformers")))
"""


class Check:
    """One run of the tool."""

    def __init__(self, options: Options, budget: Budget, heading: list[str]) -> None:
        self.options, self.budget = options, budget
        self.report = Report(Path(options.out), options.sections, heading)
        self.failed = False
        self._log = Path(options.out) / "log.txt"
        self._model = Path(options.work) / "model"
        self._server: Server | None = None
        self._run_ahead = 0
        self._facts: dict[str, float] = {}

    def say(self, text: str) -> None:
        line = f"[{self.budget.elapsed_s():6.1f} s] {text}"
        print(line, flush=True)
        with self._log.open("a") as log:
            print(line, file=log)

    def wants(self, *sections: str) -> bool:
        """Any of them."""
        return any(section in self.options.sections for section in sections)

    def make_model(self, section: str) -> bool:
        """Whether the measured servers have something to start on."""
        try:
            model = write_model_folder(self._model, self.options.model_shape)
            if self.options.weights == "file":
                self.say("writing weights")
                write_weights(self._model, model)
        except OSError as error:
            self._fail(section, "the model's folder", "cannot be written", str(error))
            return False
        return True

    def _fail(self, section: str, what: str, value: str, *notes: str) -> None:
        self.failed = True
        self.report.add([Row(section, what, value, "", "NOT PASSED", notes)])
        self.say(f"{what} {value}: {notes[0]}")

    def job(self, module: str, section: str, least_s: float, most_s: float) -> None:
        """Runs a job if there is time for it; `section` is what its failure is told under."""
        timeout_s = self.budget.timeout_s(least_s, most_s)
        if timeout_s is None:
            self.say(f"{module}: {NO_TIME}")
            self.report.add([Row(section, module, NO_TIME)])
            return
        given = JobInput(
            self.options, str(self._model), str(Path(self.options.work) / "result.json"), timeout_s,
            url=self._server.url if self._server else "", pid=self._server.process.pid if self._server else 0,
            run_ahead=self._run_ahead, facts=self._facts,
        )  # fmt: skip
        begin = self.budget.elapsed_s()
        end = run_job(module, given, self._log, self.say)
        self._facts |= end.result.facts
        rows = list(end.result.rows)
        if end.problem is not None:
            server = self._server.tail() if self._server and not self._server.answers() else ()
            notes = (*end.tail, *(f"server: {line}" for line in server))
            rows.append(Row(section, module, end.problem, "", "NOT PASSED", notes))
        self.failed |= any(row.verdict == "NOT PASSED" for row in rows)
        self.report.add(rows, end.result.details)
        self.say(f"{module}: {end.problem or 'done'} in {self.budget.elapsed_s() - begin:.1f} s")

    @contextmanager
    def server(self, run_ahead: int, section: str) -> Iterator[bool]:
        """A server of the measured model; False where there is no time for one, or it does not start."""
        timeout_s = self.budget.timeout_s(20.0, SERVER_START_S)
        what = f"server with run-ahead {run_ahead}"
        if timeout_s is None:
            self.report.add([Row(section, what, NO_TIME)])
            yield False
            return
        self.say(f"starting a {what}")
        try:
            with Server(self._server_flags(run_ahead), Path(self.options.out) / "servers.txt", timeout_s) as server:
                self.say(f"{what} is ready after {server.elapsed_s():.1f} s")
                self._server, self._run_ahead = server, run_ahead
                yield True
        except ServerError as error:
            self._fail(section, what, "did not start", *str(error).splitlines())
            yield False
        finally:
            self._server, self._run_ahead = None, 0

    def _server_flags(self, run_ahead: int) -> list[str]:
        options = self.options
        flags = ["--model", str(self._model), "--device", options.device, "--run-ahead", str(run_ahead)]
        flags += ["--load-format", "dummy" if options.weights == "dummy" else "auto"]
        flags += ["--max-model-len", "4096", "--max-num-seqs", "256", "--dtype", "bfloat16"]
        flags += ["--max-num-batched-tokens", str(MAX_BATCHED_TOKENS), "--disable-uvicorn-access-log"]
        return [*flags, "--kv-cache-bytes", options.workload.kv_cache_bytes, *options.serve_flags]


def run_all(check: Check) -> None:
    """Sections by importance, but that those of one server go together."""
    if check.wants("tests"):
        check.job("job_tests", "tests", 15, 150)
    if check.wants("parity"):
        check.job("job_parity", "parity", 20, 130)
    measured = [name for name in ("step", "exposed", "structured", "throughput", "energy") if check.wants(name)]
    if measured and check.make_model(measured[0]):
        run_on_servers(check, measured[0])
    if check.wants("throughput"):
        check.job("job_peer", "throughput", 30, 110)
    if check.wants("start"):
        check.job("job_start", "start", 30, 150)
    if check.wants("kernels"):
        check.job("job_kernels", "kernels", 15, 180)


def run_on_servers(check: Check, first: str) -> None:
    """Run-ahead 2, then 0. `first`: the first of the sections, which a server that does not start is told under."""
    with check.server(2, first) as is_there:
        if is_there and check.wants("step", "exposed"):
            check.job("job_decode", "step" if check.wants("step") else "exposed", 15, 110)
        if is_there and check.wants("structured"):
            check.job("job_structured", "structured", 15, 60)
        if is_there and check.wants("throughput", "energy"):
            check.job("job_throughput", "throughput" if check.wants("throughput") else "energy", 15, 80)
    if check.wants("exposed", "energy"):
        with check.server(0, "exposed" if check.wants("exposed") else "energy") as is_there:
            if is_there and check.wants("exposed"):
                check.job("job_decode", "exposed", 15, 80)
            if is_there and check.wants("energy"):
                check.job("job_throughput", "energy", 15, 60)


def facts(device: str) -> list[str] | None:
    """The device and versions, read by another process: this one must hold no memory of the GPU. None: no CUDA."""
    ran = subprocess.run(
        [sys.executable, "-c", _FACTS, device], capture_output=True, text=True, check=False, env=environment()
    )
    if ran.returncode == EXIT_NO_DEVICE:
        return None
    return ran.stdout.splitlines() or ran.stderr.strip().splitlines()[-1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    argv = sys.argv[1:]
    own, serve_flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = parser.parse_args(own)
    budget = Budget(args.budget_s, time.monotonic)
    machine = facts(args.device)
    if machine is None:
        print("gpu_check: no CUDA device here; --device cpu tries the tool itself", file=sys.stderr)
        return EXIT_NO_DEVICE
    try:
        options = options_from(args, serve_flags)
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return EXIT_BAD_ARGUMENTS
    Path(options.out).mkdir(parents=True, exist_ok=True)
    heading = ["tools/gpu_check.py " + " ".join(argv), *machine]
    check = Check(options, budget, heading)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run_all(check)
    except KeyboardInterrupt:
        check.failed = True
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
        check.report.heading.append(f"{budget.elapsed_s():.0f} s of {options.budget_s:.0f}; details in {options.out}")
        check.report.save()
        print(check.report.text(), flush=True)
    return EXIT_FAILED if check.failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
