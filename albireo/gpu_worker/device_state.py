"""Request state that stays on the device between steps, indexed by request slot; a plan only changes it.

On the CPU device every array is numpy memory that torch tensors share, so that a plan is applied with a few array
assignments and nothing is copied.
"""

import numpy as np
import numpy.typing as npt
import torch

from albireo.config import SchedulerConfig
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm.plan_ring import PlanSlot


class DeviceState:
    """Per slot: who it is, where its KV lies, its last token, how to sample, whether it is still alive."""

    def __init__(self, config: SchedulerConfig, masks: npt.NDArray[np.int32] | None = None) -> None:
        """`masks`: as of `SamplingTable`."""
        n = config.num_slots
        self.generation = np.zeros(n, np.uint32)
        self.alive = np.zeros(n, np.bool_)
        """False once the slot's request sampled EOS or a stop id: its planned rows do nothing visible."""
        self.last_token = np.zeros(n, np.int32)
        self.num_tokens = np.zeros(n, np.int32)
        """Tokens of the sequence, the last sampled one included; its KV is not written yet."""
        self.block_table = np.zeros((n, config.max_blocks_per_seq), np.int32)
        self.num_prompt_logprobs = np.zeros(n, np.int32)
        """Most likely tokens beside each prompt token that is scored."""
        self.rows: npt.NDArray[np.int32] = np.empty(0, np.int32)
        """Slots of the decode rows, in batch order."""
        self.sampling = SamplingTable(n, config.max_model_len, masks)
        self.block_table_tensor = torch.from_numpy(self.block_table)

    def apply(self, plan: PlanSlot) -> None:
        """Admissions, appended blocks and, where the batch changed, its rows."""
        counts = plan.counts()
        if counts.rows_changed:
            self.rows = plan.rows[: counts.num_rows].copy()
        if counts.num_admissions:
            self._admit(plan, counts.num_admissions)
        if counts.num_appends:
            appends = plan.appends[: counts.num_appends]
            self.block_table[appends["slot"], appends["index"]] = appends["block"]

    def _admit(self, plan: PlanSlot, count: int) -> None:
        entries = plan.admissions[:count]
        slots = entries["slot"]
        self.generation[slots] = entries["generation"]
        self.alive[slots] = True
        self.num_prompt_logprobs[slots] = entries["num_prompt_logprobs"]
        self.sampling.admit(entries, plan.extras[: int(plan.header["num_extras"][0])])

    def advance(
        self,
        slots: npt.NDArray[np.int32],
        tokens: npt.NDArray[np.int32],
        num_tokens: npt.NDArray[np.int32],
        ended: npt.NDArray[np.bool_],
    ) -> None:
        """Enters the sampled `tokens` of `slots`, which make each sequence `num_tokens` long."""
        self.last_token[slots] = tokens
        self.num_tokens[slots] = num_tokens
        self.alive[slots] = ~ended
