"""The virtual clock says of a node what the roofline and the scheduler say, and nothing else."""

from typing import Any

import numpy as np
import pytest
from capacity import Node, Shape, main, most_carried, offer, parse_arguments
from shared_routes import new_routes
from virtual_engine import Timings, VirtualReplica, Workload, run

from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.frontend.routing import Router
from albireo.serve import DEMO_MODEL
from albireo.sim.roofline import Roofline, StepWork
from albireo.sim.spec import read_spec

HOST_NS = 100_000
"""Less than a step."""


def plan_of(**flags: Any) -> EnginePlan:
    common = {"device": "sim:l40", "max_model_len": 512, "enable_prefix_caching": False}
    return plan_engine(EngineArgs(str(DEMO_MODEL), **{**common, **flags}), num_cpus=1)


def work_of(*requests: tuple[int, int, int]) -> Workload:
    """Arrival in ns, prompt, answer."""
    arrival, given, made = np.array(requests, np.int64).T
    return Workload(arrival, given, made)


def run_on(replicas: list[VirtualReplica], work: Workload) -> Timings:
    found = run(replicas, Router("least-work", new_routes(len(replicas))[0], len(replicas), 1), work)
    assert found is not None
    return found


@pytest.mark.parametrize(("run_ahead", "exposed"), [(2, 0), (0, HOST_NS)])
def test_a_request_takes_its_steps_and_what_the_host_exposes(run_ahead: int, exposed: int) -> None:
    plan = plan_of(run_ahead=run_ahead)
    replica = VirtualReplica(plan, HOST_NS)
    timings = run_on([replica], work_of((5000, 100, 4)))
    roofline = Roofline(plan.checkpoint.model, 1, plan.dtype, read_spec("l40"))

    def ns(work: StepWork) -> int:
        return round(1e9 * roofline.step(work).total)

    first = 5000 + HOST_NS + ns(StepWork.prefill(1, 100))
    decodes = sum(ns(StepWork.decode(1, context)) for context in (101, 102, 103))
    assert timings.first_ns.tolist() == [first]
    assert timings.last_ns.tolist() == [first + decodes + 3 * exposed]
    assert timings.num_tokens.tolist() == [4]
    assert replica.busy_ns == ns(StepWork.prefill(1, 100)) + decodes
    assert (replica.num_sequences, replica.num_prompt_tokens, replica.num_steps) == (0, 0, 4)


def test_every_request_gets_its_tokens_through_preemptions_on_every_replica() -> None:
    plan = plan_of(kv_cache_bytes=40 * block_bytes())
    replicas = [VirtualReplica(plan), VirtualReplica(plan)]
    timings = run_on(replicas, work_of(*((1000 * n, 100, 150 + n) for n in range(24))))
    assert timings.num_tokens.tolist() == [150 + n for n in range(24)]
    assert (timings.first_ns > 0).all()
    assert all(replica.scheduler.counters.num_preemptions for replica in replicas)
    assert all(replica.num_steps for replica in replicas)
    assert all(replica.scheduler.pool.num_used == 0 for replica in replicas)


def block_bytes() -> int:
    plan = plan_of()
    return plan.kv_cache_bytes // VirtualReplica(plan).device.num_kv_blocks


def test_who_gives_up_does_so_when_too_many_are_late() -> None:
    work = work_of(*((n, 400, 100) for n in range(256)))
    router = Router("least-work", new_routes(1)[0], 1, 1)
    replica = VirtualReplica(plan_of(max_num_seqs=1, max_num_batched_tokens=16))
    assert run([replica], router, work, most_late=10, late_ns=100) is None
    assert run([VirtualReplica(plan_of())], router, work, most_late=256, late_ns=100) is not None


def test_the_rate_that_is_found_is_carried_and_a_little_more_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "capacity --device sim:l40 --gpus 2 --shape s=64/16 --seconds 1 --max-num-seqs 8 --goodput ttft:5 tpot:50 demo"
    )
    monkeypatch.setattr("sys.argv", line.split())
    args = parse_arguments()
    node = Node(args, plan_of(max_num_seqs=8), Shape("s", 64, 16), 2, 0.0)
    best = most_carried(node)
    assert best.is_carried
    assert best.good_share >= 0.95
    assert not offer(node, best.rate * 1.1).is_carried


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
