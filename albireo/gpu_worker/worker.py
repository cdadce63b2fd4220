"""The worker actor: one `step` is fetch a plan, run it on the device, publish its tokens.

It makes no scheduling decision and knows no request: it sees fixed-layout arrays only.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from albireo.shm.plan_ring import PlanReader, PlanSlot
from albireo.shm.token_ring import TokenSlot, TokenWriter


class Device(Protocol):
    """What runs steps. The worker does not know which one it drives."""

    @property
    def name(self) -> str: ...

    @property
    def num_kv_blocks(self) -> int: ...

    def execute(self, plan: PlanSlot, result: TokenSlot) -> None:
        """Runs one step and fills `result` but for its sequence and times. When it returns, the device has used
        `plan`, and `result` is complete."""


class Worker:
    """State and step of the process. Rings, device, heartbeat and clock are handed in."""

    def __init__(
        self,
        device: Device,
        plans: PlanReader,
        tokens: TokenWriter,
        ring_bell: Callable[[], None],
        heartbeat: npt.NDArray[Any],
        clock_ns: Callable[[], int],
    ) -> None:
        self._device = device
        self._plans = plans
        self._tokens = tokens
        self._ring_bell = ring_bell
        self._heartbeat = heartbeat
        self._clock_ns = clock_ns

    def step(self) -> bool:
        """Runs the next plan if there is one; False when the ring is empty."""
        plan = self._plans.poll()
        begin_ns = self._clock_ns()
        self._heartbeat["heartbeat_ns"] = begin_ns
        if plan is None:
            return False
        result = self._tokens.next_slot()
        self._heartbeat["running_step"] = plan.header["sequence"]
        self._device.execute(plan, result)
        end_ns = self._clock_ns()
        result.header["begin_ns"], result.header["end_ns"] = begin_ns, end_ns
        self._heartbeat["step"] = self._tokens.publish()
        self._heartbeat["running_step"] = 0
        self._heartbeat["heartbeat_ns"] = end_ns
        self._ring_bell()
        self._plans.consume()
        return True
