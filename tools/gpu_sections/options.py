"""The tool's flags as one frozen record, which every job is handed, and how large the workloads are."""

import argparse
import tempfile
from pathlib import Path

from msgspec import Struct

SECTIONS = ("tests", "parity", "step", "exposed", "structured", "throughput", "start", "energy", "kernels")
"""In the order of their importance."""
QUICK_SECTIONS = ("tests", "parity", "step")
QUICK_BUDGET_S = 150.0
FAMILIES = ("llama-llama3", "mistral", "qwen2", "qwen3")
MAX_BATCHED_TOKENS = 2048
"""The server's --max-num-batched-tokens: its default, said so that the workloads can count on it."""


class Workload(Struct, frozen=True):
    """How much is measured of one model shape. Lengths in tokens."""

    batches: tuple[int, ...]
    context: int
    """Of a prompt. Rows that decode have 80 to 150 more, by the batch."""
    steps: int
    """Measured of each batch."""
    requests: int
    input_len: int
    output_len: int
    peer_requests: int
    """transformers may be far slower: it gets so many."""
    kv_cache_bytes: str
    """In the server's notation."""


WORKLOADS = {
    "8b": Workload((1, 64, 256), 900, 160, 512, 512, 256, 128, "42G"),
    "1b": Workload((1, 64, 256), 900, 160, 512, 512, 256, 128, "16G"),
    "tiny": Workload((1, 4, 8), 64, 40, 16, 32, 16, 8, "256M"),
}


class Options(Struct, frozen=True):
    """One run of the tool."""

    device: str
    sections: tuple[str, ...]
    model_shape: str
    workload: Workload
    families: tuple[str, ...]
    budget_s: float
    out: str
    work: str
    """Folder for checkpoints; emptied of ours at the end."""
    test_workers: int
    serve_flags: tuple[str, ...]
    """Further flags of every measured server."""
    weights: str
    """`dummy` or `file`: what the measured servers load."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the tool itself")
    parser.add_argument("--sections", help=f"comma-separated, of {','.join(SECTIONS)} (default: all)")
    parser.add_argument("--model-shape", choices=list(WORKLOADS), default="8b", help="random weights (default: 8b)")
    parser.add_argument("--budget-s", type=float, default=520.0, metavar="S", help="what no longer fits is skipped")
    parser.add_argument("--quick", action="store_true", help="tests, parity of one family, step at batch 1 and 64")
    parser.add_argument("--out", type=Path, metavar="DIR", help="table.txt, results.json and logs (default: a new one)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="local disk for checkpoints (default: temporary)")
    parser.add_argument("--test-workers", type=int, default=6, help="of pytest-xdist, if it is there; 0: one by one")
    parser.add_argument("--weights", choices=["dummy", "file"], default="dummy", help="of the measured servers")
    scale = parser.add_argument_group("scale", "defaults depend on --model-shape")
    scale.add_argument("--batches", metavar="N,N,N", help="of decode steps")
    scale.add_argument("--context", type=int, help="tokens of their prompts")
    scale.add_argument("--steps", type=int, help="measured of each batch")
    scale.add_argument("--requests", type=int, help="of the throughput run")
    scale.add_argument("--peer-requests", type=int, help="of transformers' throughput run")
    scale.add_argument("--input-len", type=int)
    scale.add_argument("--output-len", type=int)
    scale.add_argument("--kv-cache-bytes", metavar="SIZE", help="of the measured servers")


def options_from(args: argparse.Namespace, serve_flags: list[str]) -> Options:
    """Raises ValueError, in one line, for flags that make no sense."""
    sections: tuple[str, ...] = QUICK_SECTIONS if args.quick else SECTIONS
    if args.sections is not None:
        sections = choose_sections(args.sections)
    workload = scaled(WORKLOADS[args.model_shape], args)
    if args.quick and args.batches is None:
        workload = replace(workload, batches=workload.batches[:2])
    budget_s = min(args.budget_s, QUICK_BUDGET_S) if args.quick else args.budget_s
    out = args.out or Path(tempfile.mkdtemp(prefix="gpu_check_"))
    work = Path(tempfile.mkdtemp(prefix="gpu_check_work_", dir=args.work))
    return Options(
        device=args.device,
        sections=sections,
        model_shape=args.model_shape,
        workload=workload,
        families=FAMILIES[:1] if args.quick else FAMILIES,
        budget_s=budget_s,
        out=str(out.resolve()),
        work=str(work),
        test_workers=args.test_workers if args.device == "cuda" else 0,
        serve_flags=tuple(serve_flags),
        weights=args.weights,
    )


def choose_sections(text: str) -> tuple[str, ...]:
    """`step,parity` -> ("parity", "step"): in the order of importance. Raises ValueError."""
    named = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in named if name not in SECTIONS]
    if unknown or not named:
        raise ValueError(f"--sections knows {', '.join(SECTIONS)}, not {unknown[0] if unknown else text!r}")
    return tuple(name for name in SECTIONS if name in named)


def scaled(workload: Workload, args: argparse.Namespace) -> Workload:
    """With what the flags say otherwise. Raises ValueError."""
    changes: dict[str, object] = {}
    for name in ("context", "steps", "requests", "peer_requests", "input_len", "output_len", "kv_cache_bytes"):
        value = getattr(args, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if value is not None:
            changes[name] = value
    if args.batches is not None:
        parts = args.batches.split(",")
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"--batches takes numbers from 1 on, not {args.batches!r}")
        changes["batches"] = tuple(sorted({int(part) for part in parts}))
    return replace(workload, **changes)


def replace(workload: Workload, **changes: object) -> Workload:
    """`workload` with other values of some fields."""
    fields = {name: getattr(workload, name) for name in workload.__struct_fields__}
    return Workload(**(fields | changes))
