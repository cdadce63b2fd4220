"""What constrained streams cost those beside them: inter-token latency of plain streams, with constrained ones as their
neighbours and with as many plain ones, in turns.

    python tools/bench_structured.py [MODEL] --streams 4 --rounds 5 -- --run-ahead 2

What stands behind `--` is for the server. `their tok/s`: of a neighbour, prompt included; constrained ones lose what
their rows wait for their masks.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from albireo.bench.metrics import summarise
from albireo.bench.serve import serve_bench
from albireo.serve import DEMO_MODEL

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from gpu_sections.job_structured import Streams
from gpu_sections.load import first_error, settings
from gpu_sections.servers import model_name
from server import Server


def measure(url: str, model: str, count: int, output_len: int, constrained: bool, seed: int) -> tuple[float, ...]:
    """Mean, p50 and p99 of the plain streams' inter-token latencies in ms, and the neighbours' tokens per second."""
    body: dict[str, object] = {"model": model_name(url), "max_tokens": output_len, "temperature": 1.0}
    # no end but one that is hardly ever written: as many tokens as a plain stream has
    regex = "[A-Za-z ,.]*#####"
    body |= {"structured_outputs": {"regex": regex}} if constrained else {"ignore_eos": True}
    with Streams(url, body, count, 16, seed) as streams:
        run = serve_bench(settings(url, model, count, 16, output_len, seed), None)
    if problem := first_error(run.outcomes) or streams.problem:
        raise SystemExit(problem)
    gaps = summarise(run.outcomes, {}).latencies_ms["itl"]
    p50, p99 = np.percentile(gaps, (50, 99)).tolist()
    return float(np.mean(gaps)), p50, p99, float(np.median(streams.rates))


def main() -> None:
    argv = sys.argv[1:]
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(DEMO_MODEL))
    parser.add_argument("--streams", type=int, default=4, help="of each kind")
    parser.add_argument("--output-len", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(own)
    ratios: list[list[float]] = []
    with Server(args.model, "--disable-uvicorn-access-log", *flags) as server:
        for constrained in (False, True):  # grammars compiled, kernels loaded
            measure(server.url, args.model, args.streams, args.output_len, constrained, 1)
        print(f"{'neighbours':<12}  mean ms      p50      p99  their tok/s")
        for number in range(args.rounds):
            turn = {}
            for constrained in (False, True):
                figures = measure(
                    server.url, args.model, args.streams, args.output_len, constrained, 10 + 2 * number + constrained
                )
                turn[constrained] = figures
                name = "constrained" if constrained else "plain"
                print(
                    f"{name:<12}{figures[0]:>9.3f}{figures[1]:>8.3f}{figures[2]:>8.3f}{figures[3]:>13.1f}", flush=True
                )
            ratios.append([after / before for before, after in zip(turn[False], turn[True], strict=True)])
    for name, values in zip(("mean", "p50", "p99", "their tok/s"), zip(*ratios, strict=True), strict=True):
        ordered = sorted(values)
        print(f"{name}: {ordered[len(ordered) // 2]:.3f} x ({ordered[0]:.3f} to {ordered[-1]:.3f})")


if __name__ == "__main__":
    main()
