"""The result of `bench pipeline` for people (a table) and for programs (JSON)."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from albireo.bench.machine import describe_machine, describe_versions
from albireo.bench.pipeline import Measurement, PipelineSettings

_ROLES = ("coordinator", "worker", "frontend", "client")


def print_table(console: Console, settings: PipelineSettings, measurements: Sequence[Measurement]) -> None:
    """A line per measurement."""
    machine = describe_machine()
    console.print(f"{machine['cpu']}, {machine['cores']} cores; null device, {settings.step_ms:g} ms a step, "
                  f"run-ahead {settings.run_ahead}, {settings.tensor_parallel_size} rank(s)")  # fmt: skip
    console.print("device, gap, p50/p99 (between two token messages): us; processes: CPU us a step, us a token, cores")
    roles = [role for role in _ROLES if any(role in measured.core_share for measured in measurements)]
    table = Table(box=box.MARKDOWN)
    for title in ("client", "batch", "tokens/s", "steps/s", "device", "gap", "p50/p99"):
        table.add_column(title, justify="left" if title == "client" else "right")
    for role in roles:
        table.add_column(role, justify="right")
    for measured in measurements:
        table.add_row(*_cells(measured), *(_cpu(measured, role) for role in roles))
    console.print(table)


def _cells(measured: Measurement) -> list[str]:
    interval = "-"
    if measured.interval_p50_us is not None and measured.interval_p99_us is not None:
        interval = f"{measured.interval_p50_us:.0f} / {measured.interval_p99_us:.0f}"
    numbers = (measured.tokens_per_s, measured.steps_per_s, measured.step_device_us, measured.step_gap_us)
    return [measured.client, str(measured.batch), *(f"{number:,.0f}" for number in numbers), interval]


def _cpu(measured: Measurement, role: str) -> str:
    if role not in measured.core_share:
        return "-"
    per_step, per_token = measured.cpu_us_per_step[role], measured.cpu_us_per_token[role]
    return f"{per_step:,.0f}, {per_token:.2f}, {measured.core_share[role]:.2f}"


def save(path: Path, settings: PipelineSettings, measurements: Sequence[Measurement]) -> None:
    """Everything that the table says and more, as JSON. Raises OSError."""
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "measurements": measurements,
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
