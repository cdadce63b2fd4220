"""A step's rows as the token ring has them."""

import numpy as np
import numpy.typing as npt

from albireo.gpu_worker.device_state import DeviceState
from albireo.gpu_worker.step_inputs import StepRows
from albireo.messages import Finish
from albireo.shm.token_ring import TokenSlot

Int32s = npt.NDArray[np.int32]


class ResultRows:
    """Writes them. Who a row is stays in the ring's slot from the last time it was used, as long as the batch is the
    same array of the state: a slot that changed hands came with another one."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._written: dict[int, Int32s] = {}
        """By the ring slot's identity (it lives as long as this object): the `result_slots` that it holds."""

    def write(self, result: TokenSlot, rows: StepRows, sampled: tuple[Int32s, Int32s] | None) -> None:
        """`sampled`: tokens and their `Finish` of the rows that are alive; the others get -1."""
        slots = rows.result_slots
        out = result.rows[: slots.size]
        result.header["num_rows"] = slots.size
        if self._written.get(id(result)) is not slots:
            self._written[id(result)] = slots
            out["slot"], out["generation"] = slots, self._state.generation[slots]
        if sampled is not None and sampled[0].size == slots.size:
            out["token"], out["finish"] = sampled
            return
        out["token"], out["finish"] = -1, Finish.NONE
        if sampled is not None:
            out["token"][rows.live], out["finish"][rows.live] = sampled
