"""The worker actor: one `step` is fetch a plan, run it on the device, publish its tokens.

It makes no scheduling decision and knows no request: it sees fixed-layout arrays only.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from albireo.shm.flight import Part, Recorder
from albireo.shm.plan_ring import PlanReader, PlanSlot
from albireo.shm.token_ring import TokenSlot, TokenWriter


class Device(Protocol):
    """What runs steps. The worker does not know which one it drives."""

    @property
    def name(self) -> str: ...

    @property
    def num_kv_blocks(self) -> int: ...

    def execute(self, plan: PlanSlot, result: TokenSlot) -> None:
        """Runs one step and fills `result` but for its sequence. When it returns, the device has used `plan`, and
        `result` is complete. The recorder's last mark is where its rows were begun to be written."""


class Worker:
    """State and step of the process. Rings, device, heartbeat and clock are handed in."""

    def __init__(
        self,
        device: Device,
        plans: PlanReader,
        tokens: TokenWriter,
        ring_bell: Callable[[], None],
        heartbeat: npt.NDArray[Any],
        recorder: Recorder,
        clock_ns: Callable[[], int],
    ) -> None:
        self._device = device
        self._plans = plans
        self._tokens = tokens
        self._ring_bell = ring_bell
        self._heartbeat = heartbeat
        self._recorder = recorder
        self._clock_ns = clock_ns

    def step(self) -> bool:
        """Runs the next plan if there is one; False when the ring is empty."""
        plan = self._plans.poll()
        if plan is None:
            self._heartbeat["heartbeat_ns"] = self._clock_ns()
            return False
        header = plan.header[0]
        step = int(header["sequence"])
        num_tokens = int(header["num_rows"]) + int(header["num_chunk_tokens"])
        self._heartbeat["heartbeat_ns"] = self._recorder.start(step, num_tokens)
        self._heartbeat["running_step"] = step
        result = self._tokens.next_slot()
        self._device.execute(plan, result)
        self._heartbeat["step"] = self._tokens.publish()
        self._heartbeat["running_step"] = 0
        self._plans.consume()
        self._recorder.mark(Part.RESULT_WRITE)
        self._ring_bell()
        self._heartbeat["heartbeat_ns"] = self._recorder.mark(Part.DOORBELL)
        return True
