"""The virtual clock says of a node what the roofline and the scheduler say, and nothing else."""

from typing import Any

import numpy as np
import pytest
from shared_routes import new_routes
from virtual_node import Timings, VirtualNode, Workload
from virtual_replica import Clock, VirtualReplica

from albireo.coordinator.request import Request
from albireo.coordinator.results import ConfirmedRows
from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.frontend.routing import Router
from albireo.messages import Admitted, SamplingParams
from albireo.serve import DEMO_MODEL
from albireo.sim.roofline import Roofline, StepWork
from albireo.sim.spec import read_spec

HOST_NS, CONFIRM_NS = 100_000, 70_000
"""Less than a step."""


def plan_of(**flags: Any) -> EnginePlan:
    common = {"device": "sim:l40", "max_model_len": 512, "enable_prefix_caching": False}
    return plan_engine(EngineArgs(str(DEMO_MODEL), **{**common, **flags}), num_cpus=1)


def work_of(*requests: tuple[int, int, int]) -> Workload:
    """Arrival in ns, prompt, answer."""
    arrival, given, made = np.array(requests, np.int64).T
    return Workload(arrival, given, made)


def node_of(plan: EnginePlan, num_replicas: int = 1, host_ns: int = 0) -> VirtualNode:
    router = Router("least-work", new_routes(num_replicas)[0], num_replicas, 1)
    return VirtualNode(plan, num_replicas, router, host_ns)


def run_on(node: VirtualNode, work: Workload) -> Timings:
    found = node.run(work)
    assert found is not None
    return found


@pytest.mark.parametrize(("run_ahead", "exposed"), [(2, 0), (0, HOST_NS)])
def test_a_request_takes_its_steps_and_what_the_host_exposes(run_ahead: int, exposed: int) -> None:
    plan = plan_of(run_ahead=run_ahead)
    node = node_of(plan, host_ns=HOST_NS)
    timings = run_on(node, work_of((5000, 100, 4)))
    (replica,) = node.replicas
    roofline = Roofline(plan.checkpoint.model, 1, plan.dtype, read_spec("l40"))

    def ns(work: StepWork) -> int:
        return round(1e9 * roofline.step(work).total)

    first = 5000 + HOST_NS + ns(StepWork.prefill(1, 100))
    decodes = sum(ns(StepWork.decode(1, context)) for context in (101, 102, 103))
    assert timings.first_ns.tolist() == [first]
    assert timings.last_ns.tolist() == [first + decodes + 3 * exposed]
    assert timings.num_tokens.tolist() == [4]
    assert replica.busy_ns == ns(StepWork.prefill(1, 100)) + decodes
    assert (replica.num_sequences, replica.num_steps) == (0, 4)


def test_every_request_gets_its_tokens_through_preemptions_on_every_replica() -> None:
    plan = plan_of(kv_cache_bytes=40 * block_bytes())
    node = node_of(plan, 2)
    timings = run_on(node, work_of(*((1000 * n, 100, 150 + n) for n in range(24))))
    assert timings.num_tokens.tolist() == [150 + n for n in range(24)]
    assert (timings.first_ns > 0).all()
    assert all(replica.scheduler.counters.num_preemptions for replica in node.replicas)
    assert all(replica.num_steps for replica in node.replicas)
    assert all(replica.scheduler.pool.num_used == 0 for replica in node.replicas)


def block_bytes() -> int:
    plan = plan_of()
    return plan.kv_cache_bytes // node_of(plan).replicas[0].device.num_kv_blocks


def test_a_hopeless_run_is_given_up_where_it_was_found_to_be() -> None:
    asked: list[tuple[int, int]] = []

    def is_hopeless(timings: Timings, num_arrived: int, now_ns: int) -> bool:
        asked.append((num_arrived, now_ns))
        return num_arrived >= 128

    work = work_of(*((n, 400, 100) for n in range(256)))
    node = node_of(plan_of())
    assert node.run(work, is_hopeless) is None
    assert asked == [(64, 63), (128, 127)]
    assert node.clock.now_ns == 127


def test_where_results_are_known_late_tokens_and_what_is_planned_from_them_come_late() -> None:
    plan, known_ns, held = plan_of(run_ahead=0), [], set()
    clock = Clock()

    def on_step(admitted: list[Admitted], rows: ConfirmedRows) -> None:
        known_ns.append(clock.now_ns)
        held.add(replica.num_held_tokens)

    replica = VirtualReplica(plan, clock, on_step, confirm_ns=CONFIRM_NS)
    request = Request(
        frontend=0, request_id=0, tokens=np.zeros(100, np.int32), priority=0, arrival=0, max_total_tokens=104,
        sampling=SamplingParams(max_tokens=4, ignore_eos=True), cache_salt="",
    )  # fmt: skip
    replica.submit(request)
    clock.run()
    roofline = Roofline(plan.checkpoint.model, 1, plan.dtype, read_spec("l40"))
    works = [StepWork.prefill(1, 100), *(StepWork.decode(1, context) for context in (101, 102, 103))]
    steps_ns = [round(1e9 * roofline.step(work).total) + CONFIRM_NS for work in works]
    assert known_ns == [sum(steps_ns[: number + 1]) for number in range(4)]
    assert held == {0, 112}, "blocks of 16 tokens, as of the step before"
    assert replica.num_held_tokens == 0
