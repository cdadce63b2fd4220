"""The examination: everything that `serve` would need, looked at without starting it."""

import platform
from typing import Literal

from msgspec import Struct

from albireo import __version__
from albireo.doctor.fit import Fit, compute_fit
from albireo.doctor.machine import Machine, read_machine
from albireo.doctor.probe import Probe, ProbeError, ask_probe
from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.engine_file import find_engines
from albireo.errors import StartupError
from albireo.listener import ListenAddress, listening

ENOUGH_OPEN_FILES = 4096
"""A connection is a descriptor, and so is each segment and socket of the engine."""

Grade = Literal["good", "note", "problem"]


class Check(Struct, frozen=True):
    """One thing looked at. A problem keeps a server from starting; a note does not."""

    topic: str
    grade: Grade
    text: str
    advice: str | None = None


class Findings(Struct, frozen=True):
    """All of it."""

    version: str
    python: str
    model: str
    can_start: bool
    machine: Machine
    probe: Probe | None
    fit: Fit | None
    checks: tuple[Check, ...]


def examine(args: EngineArgs, host: str, port: int) -> Findings:
    """Takes seconds, most of them torch's import in a child."""
    machine, checks = read_machine(), []
    engine, probe, fit = None, None, None
    try:
        engine = plan_engine(args, num_cpus=machine.cores)
    except StartupError as error:
        checks.append(Check("model", "problem", str(error)))
    try:
        probe = ask_probe(engine)
    except ProbeError as error:
        checks.append(Check("packages", "problem", str(error), "pip install albireo in this environment again"))
    checks += [*machine_checks(machine), *port_checks(host, port)]
    if probe is not None:
        checks += [*package_checks(probe), *gpu_checks(probe, engine)]
    if probe is not None and engine is not None:
        fit = compute_fit(engine, probe.gpus)
        checks += engine_checks(engine, probe, fit, machine)
    can_start = not any(check.grade == "problem" for check in checks)
    return Findings(__version__, platform.python_version(), args.model, can_start, machine, probe, fit, tuple(checks))


def machine_checks(machine: Machine) -> list[Check]:
    """What of the machine is in the way."""
    checks = []
    if not machine.has_memfd:
        advice = "allow memfd_create(2) in the sandbox's system call filter"
        checks.append(Check("shared memory", "problem", "anonymous shared memory is forbidden here", advice))
    if machine.open_files_limit is not None and machine.open_files_limit < ENOUGH_OPEN_FILES:
        text = f"at most {machine.open_files_limit} open files, which bounds the connections"
        checks.append(Check("open files", "note", text, f"ulimit -n {ENOUGH_OPEN_FILES}, or LimitNOFILE= of systemd"))
    if machine.cpu_quota is not None and machine.cpu_quota < machine.cores:
        text = f"the cgroup gets {machine.cpu_quota:g} cores' time of {machine.cores}: threads will be stopped midway"
        checks.append(Check("cores", "note", text, f"--cpu-threads {max(1, int(machine.cpu_quota))}"))
    return checks


def port_checks(host: str, port: int) -> list[Check]:
    """Whether the server could listen."""
    try:
        with listening(ListenAddress(host, port)):
            return [Check("port", "good", f"{port} on {host} is free")]
    except StartupError as error:
        mine = next((engine for engine in find_engines() if engine.port == port), None)
        text = str(error).partition(";")[0]
        if mine is not None:
            text += f" (an Albireo serves {mine.model_name} there, pid {mine.pid})"
        return [Check("port", "problem", text, "choose another with --port, or 0 for any that is free")]


def package_checks(probe: Probe) -> list[Check]:
    """Optional packages that are missing."""
    uses = {"matplotlib": ("plot", "pictures (trace --gantt, bench --plot)"), "llguidance": ("", "structured output")}
    checks = []
    for name, (extra, use) in uses.items():
        if probe.packages.get(name) is None:
            advice = f"pip install 'albireo[{extra}]'" if extra else f"pip install {name}"
            checks.append(Check("packages", "note", f"{name} is missing: no {use}", advice))
    return checks


def gpu_checks(probe: Probe, engine: EnginePlan | None) -> list[Check]:
    """A GPU that cannot be used is a problem where one was asked for, and a note where one is there."""
    if probe.no_cuda is None:
        if probe.packages.get("nvidia-ml-py") is None:
            text = "nvidia-ml-py is missing: no energy and utilisation on /metrics"
            return [Check("GPU", "note", text, "pip install 'albireo[cuda]'")]
        return []
    if engine is not None and engine.device == "cuda":
        return [Check("GPU", "problem", probe.no_cuda)]
    if probe.driver is not None and probe.driver.gpus:
        text = f"{probe.driver.gpus[0]} is there and cannot be used: {probe.no_cuda}"
        return [Check("GPU", "note", text, "pip install 'albireo[cuda]', with a CUDA build of torch")]
    return []


def engine_checks(engine: EnginePlan, probe: Probe, fit: Fit, machine: Machine) -> list[Check]:
    """What is slow or too large about this model here."""
    if engine.device == "cuda":
        return cuda_fit_checks(engine, probe, fit)
    checks: list[Check] = []
    if not engine.runs_model:
        return checks
    if probe.fast_attention is False:
        text = "the attention kernels do not take this model's head size: the slow attention would run"
        checks.append(Check("attention", "note", text))
    if engine.dtype == "bfloat16" and not probe.packs_bf16:
        text = "this CPU has no bfloat16 arithmetic that oneDNN uses: products are slow"
        checks.append(Check("products", "note", text, "--dtype float32"))
    return checks


def cuda_fit_checks(engine: EnginePlan, probe: Probe, fit: Fit) -> list[Check]:
    """The same on GPUs."""
    checks = []
    if probe.gpus and len(probe.gpus) < engine.num_workers:
        text = f"{engine.num_workers} ranks would share {len(probe.gpus)} GPUs"
        checks.append(Check("GPU", "note", text, f"--tensor-parallel-size {len(probe.gpus)}"))
    if probe.gpus and fit.kv_cache_tokens < fit.max_model_len:
        text = f"about {fit.kv_cache_tokens:,} tokens of KV cache fit, fewer than one sequence of {fit.max_model_len:,}"
        advice = "lower --max-model-len, or spread the model with --tensor-parallel-size"
        checks.append(Check("model", "problem", text, advice))
    return checks
