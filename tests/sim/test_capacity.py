"""What a node of simulated devices is said to carry, and the table."""

from pathlib import Path

import numpy as np
import pytest
from capacity import Node, Shape, is_hopeless, main, most_carried, offer, parse_arguments
from virtual_node import Timings, Workload

from albireo.engine_args import EngineArgs, plan_engine
from albireo.serve import DEMO_MODEL


@pytest.mark.slow
def test_the_rate_that_is_found_is_carried_and_a_little_more_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "capacity --device sim:l40 --gpus 2 --shape s=64/16 --seconds 1 --max-num-seqs 8 --goodput ttft:5 tpot:50 demo"
    )
    monkeypatch.setattr("sys.argv", line.split())
    args = parse_arguments()
    plan = plan_engine(EngineArgs(str(DEMO_MODEL), device="sim:l40", max_num_seqs=8, max_model_len=512), num_cpus=1)
    node = Node(args, plan, Shape("s", 64, 16), 2, 0.0)
    best = most_carried(node)
    assert best.is_carried
    assert best.good_share >= 0.95
    assert not offer(node, best.rate * 1.1).is_carried


def test_a_run_is_hopeless_when_more_have_missed_a_target_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["capacity", "--shape", "s=64/16", "--goodput", "ttft:10", "tpot:5", "--share", "0.75", "demo"]
    )
    args = parse_arguments()
    ms = 1_000_000
    work = Workload(np.array([0, 0, 0, 0, 90 * ms, 99 * ms, 0, 0]), np.full(8, 64), np.full(8, 3))
    timings = Timings(8)
    timings.first_ns[:4] = [10 * ms, 11 * ms, 10 * ms, 10 * ms]
    timings.last_ns[:4] = [20 * ms, 12 * ms, 21 * ms, 90 * ms]
    timings.num_tokens[:4] = [3, 3, 3, 2]
    # late: the second; slow: the third; the fourth has not ended, and the fifth and sixth have waited 10 and 1 ms
    assert not is_hopeless(args, work, timings, 6, 100 * ms)
    assert is_hopeless(args, work, timings, 6, 100 * ms + 1)


def test_a_line_for_every_degree_and_the_best_in_bold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--device sim:l40 --gpus 2 --shape s=64/16 --request-rate 20 --seconds 1 --least-requests 20 --baseline"
    monkeypatch.setattr("sys.argv", ["capacity", str(DEMO_MODEL), *flags.split()])
    main()
    lines = capsys.readouterr().out.splitlines()[4:]
    assert [line.split(" | ")[2].strip("*") for line in lines] == ["overlapped"] * 2 + ["synchronous"] * 2
    assert [line.split(" | ")[3] for line in lines] == ["1 x 2", "2 x 1"] * 2
    assert sum("**" in line for line in lines) == 4  # all carry the rate that was asked for
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--gpus 8 --shape s=64/16 --device cpu", "--device must be a simulated one"),
        ("--gpus 8 --shape s=64", "takes NAME=IN/OUT"),
        ("--gpus 8 --shape s=64/16 --goodput ttft:1 ttft:2", "takes ttft:MS and tpot:MS"),
        ("--gpus 8 --shape s=64/16 --goodput ttft:nan tpot:2", "takes ttft:MS or tpot:MS"),
        ("--gpus 8 --shape s=64/16 --tensor-parallel-sizes 3", "divisors of --gpus 8"),
    ],
)
def test_what_makes_no_sense_is_said(
    flags: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["capacity", "demo", *flags.split()])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert text in capsys.readouterr().err


def test_a_model_that_runs_at_no_degree_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["capacity", str(tmp_path), "--gpus", "2", "--shape", "s=64/16"])
    with pytest.raises(SystemExit, match="at none of the degrees"):
        main()
    assert "no config.json" in capsys.readouterr().out
