"""Request state on the GPU, indexed by request slot, and what of it the host must know to launch a step.

A plan's changes are applied by a kernel (`kernels.fetch_plan`); the host follows only what does not
depend on tokens.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from albireo.config import SchedulerConfig
from albireo.gpu_worker.cuda.kernels.fetch_plan import fetch_plan
from albireo.gpu_worker.cuda.rings import StepRings
from albireo.shm import layout
from albireo.shm.plan_ring import PlanCounts, PlanSlot

FETCH_PROGRAMS = 8
"""Programs that share a plan's changes: a plan that admits many prompts has thousands of block-table entries."""


class CudaState:
    """Tensors [num_slots] on the device. `step` [1] is the number of the last step that the device has finished, in the
    rings' count: it finds their slots by it."""

    def __init__(self, config: SchedulerConfig, rings: StepRings, device: torch.device) -> None:
        n = config.num_slots

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._rings = rings
        self._max_rows = config.max_num_seqs
        self.admissions = zeros(n, layout.ADMISSION.itemsize // 4)
        """Each slot's `layout.ADMISSION`, as it came: who the slot is, how to sample, what ends it."""
        self.alive = zeros(n)
        """0 once the slot's request sampled EOS or a stop id: its planned rows do nothing visible."""
        self.last_token = zeros(n)
        self.num_tokens = zeros(n)
        """Tokens of the sequence, the last sampled one included; its KV is not written yet."""
        self.block_table = zeros(n, config.max_blocks_per_seq)
        self.rows = torch.full((config.max_num_seqs,), -1, dtype=torch.int32, device=device)
        """Slots of the decode rows, in batch order, then -1."""
        self.step = zeros(1, dtype=torch.int64)

    def fetch_plan(self) -> None:
        """Launches the kernel that applies the next plan."""
        rings = self._rings
        fetch_plan[(FETCH_PROGRAMS,)](
            rings.plans, self.step, self.rows, self.admissions, self.alive, self.block_table,
            SLOT_WORDS=rings.plans.stride(0), NUM_SLOTS=rings.num_slots, ROWS_AT=rings.rows_at,
            ADMISSIONS_AT=rings.admissions_at, APPENDS_AT=rings.appends_at, MAX_ROWS=self._max_rows,
            TABLE_WIDTH=self.block_table.shape[1],
        )  # fmt: skip


class HostState:
    """What the host knows of the same slots: numpy, no token."""

    def __init__(self, config: SchedulerConfig) -> None:
        n = config.num_slots
        self.generation = np.zeros(n, np.uint32)
        self.num_logprobs = np.full(n, -1, np.int32)
        self.num_prompt_logprobs = np.full(n, -1, np.int32)
        self.rows: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self.wants_logprobs = False
        """Any of `rows` does."""

    def apply(self, plan: PlanSlot, counts: PlanCounts) -> None:
        """Follows a plan; `rows` is a new array where the batch changed."""
        if counts.num_admissions:
            self._admit(plan.admissions[: counts.num_admissions])
        if counts.rows_changed:
            self.rows = plan.rows[: counts.num_rows].copy()
            self.wants_logprobs = bool((self.num_logprobs[self.rows] >= 0).any())

    def _admit(self, entries: npt.NDArray[Any]) -> None:
        slots = entries["slot"]
        for name in ("generation", "num_logprobs", "num_prompt_logprobs"):
            getattr(self, name)[slots] = entries[name]
