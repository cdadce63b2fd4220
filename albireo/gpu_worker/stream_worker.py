"""The worker actor over a device that runs steps by itself: one `step` is launch the next plan, publish what is done.

Nothing waits: a step is launched behind those that the device still works on, so that it finds the next one as soon as
it is done with the last, and results are published when the device says so.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from albireo.gpu_worker.worker import HEARTBEAT_NS, RUNNING_STEP, STEP
from albireo.shm.flight import Part, Recorder
from albireo.shm.plan_ring import PlanReader, PlanSlot
from albireo.shm.token_ring import TokenSlot, TokenWriter


class StreamDevice(Protocol):
    """Runs steps in the order in which they are launched."""

    @property
    def name(self) -> str: ...

    @property
    def num_kv_blocks(self) -> int: ...

    wake_fd: int
    """Becomes readable when a step is done. `finish_oldest` takes notice; nobody else reads it."""

    def launch(self, plan: PlanSlot, result: TokenSlot) -> None:
        """Has the next step run behind those before it. Both slots are the device's until the step is finished."""

    def finish_oldest(self) -> bool:
        """False while the device works on the oldest step in flight. True once, when it is done: its result is
        complete but for its sequence, and its plan is no longer needed. Called only while a step is in flight."""


class StreamWorker:
    """State and step of the process. Rings, device, heartbeat and clock are handed in."""

    def __init__(
        self,
        device: StreamDevice,
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
        self._in_flight: deque[tuple[int, int]] = deque()
        """Steps that are launched and not published: sequence, rows."""

    def step(self) -> bool:
        """Launches a plan and publishes results, as far as there are any; False when there was neither. A device that
        does not get on with its step leaves the heartbeat where it is."""
        launched = self._launch()
        published = self._publish()
        if not self._in_flight:
            self._beat[HEARTBEAT_NS] = self._clock_ns()
        return launched or published

    def _launch(self) -> bool:
        plan = self._plans.poll()
        if plan is None:
            return False
        counts, beat = plan.counts(), self._beat
        num_rows = counts.num_rows + counts.num_chunk_tokens
        now_ns = self._recorder.start(counts.sequence, num_rows)
        if not self._in_flight:
            beat[HEARTBEAT_NS], beat[RUNNING_STEP] = now_ns, counts.sequence
        self._device.launch(plan, self._tokens.next_slot(len(self._in_flight)))
        self._in_flight.append((counts.sequence, num_rows))
        return True

    def _publish(self) -> bool:
        recorder, beat, step = self._recorder, self._beat, 0
        while self._in_flight and self._device.finish_oldest():
            recorder.start(*self._in_flight.popleft())
            step = self._tokens.publish()
            recorder.mark(Part.RESULT_WRITE)
        if not step:
            return False
        self._plans.consume(len(self._in_flight))
        beat[STEP] = step
        beat[RUNNING_STEP] = self._in_flight[0][0] if self._in_flight else 0
        self._ring_bell()
        beat[HEARTBEAT_NS] = recorder.mark(Part.DOORBELL)
        return True
