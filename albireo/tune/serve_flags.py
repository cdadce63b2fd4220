"""Flags of `serve` behind `--`: what `tune` reads in them, and those that are its own business."""

from collections.abc import Sequence
from typing import Final

from albireo.bench.settings import SettingsError

_TAKEN: Final = {
    "--tensor-parallel-size": "--tensor-parallel-sizes says which degrees are measured",
    "-tp": "--tensor-parallel-sizes says which degrees are measured",
    "--replicas": "there are as many as --gpus has room for",
    "--model": "MODEL stands before `--`",
}
"""They would count in place of what is measured."""


def check_serve_flags(flags: Sequence[str], has_memory_per_gpu: bool) -> None:
    """Raises SettingsError."""
    taken = _TAKEN | ({"--kv-cache-bytes": "--memory-per-gpu sets it"} if has_memory_per_gpu else {})
    for flag in flags:
        name = flag.partition("=")[0]
        if name in taken:
            raise SettingsError(f"{name} cannot stand behind `--`: {taken[name]}")


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """Of `--name value` or `--name=value`, the last one, which counts; None where there is none."""
    found = None
    for position, flag in enumerate(flags):
        if flag == name:
            found = next(iter(flags[position + 1 :]), None)
        elif flag.startswith(f"{name}="):
            found = flag.removeprefix(f"{name}=")
    return found
