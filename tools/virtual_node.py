"""Requests that come to replicas at given times, and when they have their tokens, in virtual time."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from virtual_replica import Clock, VirtualReplica

from albireo.coordinator.request import Request
from albireo.coordinator.results import ConfirmedRows
from albireo.engine_args import EnginePlan
from albireo.frontend.routing import Router
from albireo.messages import Admitted, SamplingParams

Int64s = npt.NDArray[np.int64]


class Workload(NamedTuple):
    """Requests in the order in which they arrive: arrays [n]."""

    arrival_ns: Int64s
    input_len: Int64s
    """Prompt tokens; no two prompts begin alike."""
    output_len: Int64s
    """Tokens of the answer."""


class Timings:
    """Of a workload's requests, arrays [n]; 0 where it has not happened."""

    def __init__(self, num_requests: int) -> None:
        self.first_ns = np.zeros(num_requests, np.int64)
        """When the first token was there."""
        self.last_ns = np.zeros(num_requests, np.int64)
        self.num_tokens = np.zeros(num_requests, np.int64)

    def take(self, numbers: Int64s, now_ns: int) -> Int64s:
        """A step gave each of these a token, `now_ns`. Returns those whose first it is."""
        newly: Int64s = numbers[self.num_tokens[numbers] == 0]
        self.first_ns[newly] = now_ns
        self.last_ns[numbers] = now_ns
        self.num_tokens[numbers] += 1
        return newly


IsHopeless = Callable[[Timings, int, int], bool]
"""Asked with how many have arrived, and the time in nanoseconds."""


class OwnLoad:
    """What a single frontend, through which all requests come, knows of a replica."""

    is_up = True

    def __init__(self) -> None:
        self.num_sequences = self.num_prompt_tokens = 0


class VirtualNode:
    """Replicas behind one router, under one clock."""

    def __init__(self, plan: EnginePlan, num_replicas: int, router: Router, host_ns: int = 0) -> None:
        """`host_ns` is as of `VirtualReplica`."""
        self.clock = Clock()
        self.replicas = [
            VirtualReplica(plan, self.clock, partial(self._on_step, number), host_ns) for number in range(num_replicas)
        ]
        self._loads = [OwnLoad() for _ in self.replicas]
        self._router = router

    def run(self, work: Workload, is_hopeless: IsHopeless | None = None) -> Timings | None:
        """Until all requests have ended. None as soon as it is hopeless, which is asked after every 64th arrival."""
        self._work, self._timings = work, Timings(work.arrival_ns.size)
        self._is_hopeless, self._has_given_up = is_hopeless, False
        for number, arrival_ns in enumerate(work.arrival_ns.tolist()):
            self.clock.at(arrival_ns, partial(self._arrive, number))
        self.clock.run()
        return None if self._has_given_up else self._timings

    def _arrive(self, number: int) -> None:
        route = self._router.choose(b"", "", self._loads)
        assert route is not None, "replicas are never down here"
        input_len, output_len = int(self._work.input_len[number]), int(self._work.output_len[number])
        self._loads[route.replica].num_sequences += 1
        self._loads[route.replica].num_prompt_tokens += input_len
        self.replicas[route.replica].submit(
            Request(
                frontend=0, request_id=number, tokens=np.zeros(input_len, np.int32), priority=0, arrival=number,
                sampling=SamplingParams(seed=number, max_tokens=output_len, ignore_eos=True), cache_salt=str(number),
                max_total_tokens=input_len + output_len,
            )
        )  # fmt: skip
        num_arrived = number + 1
        if self._is_hopeless is not None and not num_arrived % 64:
            self._has_given_up = self._is_hopeless(self._timings, num_arrived, self.clock.now_ns)
            if self._has_given_up:
                self.clock.stop()

    def _on_step(self, replica: int, admitted: list[Admitted], rows: ConfirmedRows) -> None:
        newly = self._timings.take(rows.request_ids.astype(np.int64), self.clock.now_ns)
        load = self._loads[replica]
        load.num_prompt_tokens -= int(self._work.input_len[newly].sum())
        load.num_sequences -= int(np.count_nonzero(rows.finish))
