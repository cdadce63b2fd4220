"""The worker actor: one `step` is fetch a plan, run it on the device, publish its tokens.

It makes no scheduling decision and knows no request: it sees fixed-layout arrays only.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from albireo.shm import layout
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


HEARTBEAT_NS, STEP, RUNNING_STEP = (
    layout.WORKER_HEARTBEAT.fields[name][1] // 8  # type: ignore[index]
    for name in ("heartbeat_ns", "step", "running_step")
)
"""Places of a heartbeat's fields among its int64: a store through a memoryview takes a fifth of one through numpy."""


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
        self._beat = heartbeat.data.cast("B").cast("q")
        self._recorder = recorder
        self._clock_ns = clock_ns

    def step(self) -> bool:
        """Runs the next plan if there is one; False when the ring is empty."""
        plan = self._plans.poll()
        if plan is None:
            self._beat[HEARTBEAT_NS] = self._clock_ns()
            return False
        counts, beat = plan.counts(), self._beat
        step = counts.sequence
        beat[HEARTBEAT_NS] = self._recorder.start(step, counts.num_rows + counts.num_chunk_tokens)
        beat[RUNNING_STEP] = step
        result = self._tokens.next_slot()
        self._device.execute(plan, result)
        beat[STEP] = self._tokens.publish()
        beat[RUNNING_STEP] = 0
        self._plans.consume()
        self._recorder.mark(Part.RESULT_WRITE)
        self._ring_bell()
        beat[HEARTBEAT_NS] = self._recorder.mark(Part.DOORBELL)
        return True
