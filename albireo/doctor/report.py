"""The findings for a person: sections of named facts, what is amiss with a way out, the verdict last."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from albireo.doctor.examine import Check, Findings
from albireo.doctor.fit import Fit
from albireo.doctor.machine import Machine
from albireo.doctor.probe import Probe

_MARKS = {"good": ("✓", "green"), "note": ("•", "yellow"), "problem": ("✗", "bold red")}


def print_report(found: Findings) -> None:
    console = Console(highlight=False, emoji=False)
    console.print(f"albireo {found.version}, Python {found.python}", markup=False)
    _section(console, "Machine", _machine_rows(found.machine))
    if found.probe is not None:
        _section(console, "Software", _software_rows(found.probe))
    if found.fit is not None and found.probe is not None:
        _section(console, f"{Path(found.model).name} on {found.fit.device}", _fit_rows(found.fit, found.probe))
    console.print()
    for check in found.checks:
        _print_check(console, check)
    mark, style = _MARKS["good" if found.can_start else "problem"]
    verdict = "a server can start" if found.can_start else "a server cannot start like this"
    console.print(f"{mark} {verdict}", style=style)


def _section(console: Console, title: str, rows: dict[str, str]) -> None:
    console.print(f"\n{title}", style="bold", markup=False)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bright_black", min_width=16)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(f"  {name}", text)
    console.print(table)


def _print_check(console: Console, check: Check) -> None:
    mark, style = _MARKS[check.grade]
    console.print(f"{mark} {check.topic}: {check.text}", style=style if check.grade != "good" else None, markup=False)
    if check.advice is not None:
        console.print(f"    {check.advice}", style="bright_black", markup=False)


def _machine_rows(machine: Machine) -> dict[str, str]:
    quota = "" if machine.cpu_quota is None else f", {machine.cpu_quota:g} cores' time by the cgroup"
    limit = "" if machine.cgroup_limit is None else f", cgroup limit {size(machine.cgroup_limit)}"
    return {
        "processor": f"{machine.cpu}, {machine.cores} cores{quota}",
        "instructions": ", ".join(machine.cpu_flags) or "none of those that our kernels use",
        "memory": f"{size(machine.memory)}, {size(machine.available)} available{limit}",
        "locked memory": "unlimited" if machine.memlock_limit is None else f"at most {size(machine.memlock_limit)}",
        "open files": "unlimited" if machine.open_files_limit is None else f"at most {machine.open_files_limit:,}",
        "system": machine.system,
    }


def _software_rows(probe: Probe) -> dict[str, str]:
    rows = {name: version or "not installed" for name, version in probe.packages.items()}
    rows["CUDA"] = probe.no_cuda or f"torch is built for {probe.cuda_build}"
    for index, gpu in enumerate(probe.gpus):
        rows[f"GPU {index}"] = (
            f"{gpu.name}, {size(gpu.total_bytes)}, {size(gpu.free_bytes)} free, compute capability {gpu.capability}"
        )
    if probe.driver is not None:
        rows["NVIDIA driver"] = f"{probe.driver.version}: {', '.join(probe.driver.gpus) or 'no GPU'}"
    return rows


def _fit_rows(fit: Fit, probe: Probe) -> dict[str, str]:
    about = "about " if fit.is_estimate else ""
    cache = f"{about}{size(fit.kv_cache_bytes)}: {fit.kv_cache_tokens:,} tokens"
    rows = {
        "model": f"{fit.architecture}, {fit.parameters / 1e6:,.1f} million parameters in {fit.dtype}",
        "weights": size(fit.weights_bytes) + (f" over {fit.ranks} ranks" if fit.ranks > 1 else ""),
        "KV cache": f"{cache}, {fit.kv_bytes_per_token:,} bytes each",
        "sequences": f"{about}{fit.max_len_sequences:,.1f} of {fit.max_model_len:,} tokens at once",
    }
    if fit.device in ("cpu", "cuda"):
        rows |= {"attention": _attention(fit, probe), "decode steps": _decode_steps(fit, probe)}
    return rows


def _attention(fit: Fit, probe: Probe) -> str:
    if fit.device == "cuda":
        return "Triton kernels"
    return "own kernels on the pages in place" if probe.fast_attention else "the slow one, in torch"


def _decode_steps(fit: Fit, probe: Probe) -> str:
    if fit.device == "cuda":
        return "one CUDA graph each"
    if fit.dtype == "bfloat16" and probe.fast_attention and fit.ranks == 1:
        return f"one program each, up to {probe.kernel_rows} sequences; more: products by oneDNN"
    return "kernel by kernel, products by oneDNN"


def size(num_bytes: int) -> str:
    """1536 -> 1.5 KiB."""
    value, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
