"""Measures and writes the figures and pictures of docs/benchmarks/timeline.md: everything below its last heading.

python tools/timeline.py MODEL [--rounds 3] [--batches 32,256] [--note "On an idle machine."]
"""

import argparse
import sys
from pathlib import Path

from albireo.bench.breakdown import BreakdownSettings, measure_breakdown
from albireo.bench.breakdown_report import report

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "timeline.md"
PICTURES = PAGE.parent / "timeline"
HEADING = "## Figures\n"
RUN_AHEADS = (0, 2)


def section(model: str, batch: int, rounds: int, with_pictures: bool) -> str:
    """The part of the page on one batch size."""
    settings = BreakdownSettings(
        model=model,
        batch=batch,
        input_len=128,
        output_len=128,
        waves=3 if batch < 128 else 2,
        temperature=0.0,
        run_aheads=RUN_AHEADS,
        tensor_parallel_size=1,
        sampling_mode="local",
        serve_flags=("--kv-cache-bytes", "1G"),
        rounds=rounds,
        gantt_dir=str(PICTURES) if with_pictures else None,
    )
    return f"### Batch {batch}\n\n{report(settings, measure_breakdown(settings), as_markdown=True)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="32,256", help="the first has the pictures")
    parser.add_argument("--note", help="a sentence about the circumstances, put before the figures")
    args = parser.parse_args()
    text, heading, _ = PAGE.read_text().partition(HEADING)
    if not heading:
        print(f"{PAGE.name} has no heading {HEADING.strip()!r} to write below", file=sys.stderr)
        return 1
    batches = [int(batch) for batch in args.batches.split(",")]
    sections = [section(args.model, batch, args.rounds, batch == batches[0]) for batch in batches]
    notes = [f"{args.note}\n"] if args.note else []
    PAGE.write_text("\n".join([text + heading, *notes, *sections]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
