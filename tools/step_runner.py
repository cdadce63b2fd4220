"""Decode steps of a checkpoint on the real CpuDevice, planned by hand: no coordinator, no other process."""

import os
from collections.abc import Callable

import numpy as np

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.config import Dtype, SchedulerConfig, SegmentFds, WorkerConfig
from albireo.gpu_worker.collectives.interface import Alone, Collectives
from albireo.gpu_worker.cpu_device import CpuDevice
from albireo.shm import segment
from albireo.shm.flight import Unrecorded
from albireo.shm.plan_ring import PlanRing, PlanSlot
from albireo.shm.token_ring import TokenRing, TokenSlot


def _slots(scheduler: SchedulerConfig) -> tuple[PlanSlot, TokenSlot]:
    """One slot of a plan ring and of a token ring of their own: what a step reads and writes."""
    plan_ring, token_ring = PlanRing(scheduler, 1), TokenRing(scheduler)
    plan_fd = segment.create("plan", plan_ring.geometry.size)
    token_fd = segment.create("token", token_ring.geometry.size)
    plan_ring.initialise(plan_fd)
    token_ring.initialise(token_fd)
    slots = plan_ring.writer(plan_fd).next_slot(), token_ring.writer(token_fd).next_slot()
    os.close(plan_fd)
    os.close(token_fd)
    return slots


class StepRunner:
    """`start` fills the batch, each `step` decodes a token of every sequence in it."""

    def __init__(
        self,
        path: str,
        dtype: Dtype,
        max_num_seqs: int,
        max_model_len: int,
        threads: int,
        greedy: bool,
        clock: Callable[[], float],
        collectives: Collectives | None = None,
        num_blocks: int | None = None,
    ) -> None:
        """`max_model_len` has to leave room for all steps after the contexts of `start`. `collectives`: of a rank among
        others, who all do the same. `num_blocks`: of the KV cache, if it need not hold max_num_seqs sequences of
        max_model_len."""
        group = collectives or Alone()
        checkpoint = read_checkpoint(path)
        scheduler = SchedulerConfig(max_num_seqs=max_num_seqs, max_model_len=max_model_len)
        num_blocks = num_blocks or max_num_seqs * scheduler.max_blocks_per_seq
        local = shard_model(checkpoint.model, group.rank, group.size).local(checkpoint.model)
        kv_cache_bytes = num_blocks * kv_bytes_per_block(local, scheduler.block_size, dtype)
        config = WorkerConfig(
            name="worker-0", run_dir="", log_level="info", scheduler=scheduler, segments=SegmentFds(-1, (-1,), -1),
            rank=group.rank, num_workers=group.size, sampling_mode="local", collectives="shm", model=checkpoint.model,
            model_path=checkpoint.path, device="cpu", dtype=dtype, kv_cache_bytes=kv_cache_bytes, num_threads=threads,
            load_format="safetensors", seed=0,
        )  # fmt: skip
        self.device = CpuDevice(config, group, lambda: None, lambda stage, fraction: None, Unrecorded())
        # Pages that were never written are all one page of zeros, which a cache holds.
        for k_cache, v_cache in self.device._kv_cache.layers:
            k_cache.normal_()
            v_cache.normal_()
        self._plan, self._result = _slots(scheduler)
        self._temperature = 0.0 if greedy else 0.8
        self._clock = clock
        self._blocks = np.random.default_rng(0).permutation(num_blocks).astype(np.int32)

    def start(self, batch: int, context: int) -> None:
        """A batch of sequences of `context` tokens, whose KV is taken as written. The next step admits them."""
        plan, state, slots = self._plan, self.device.state, np.arange(batch)
        header = plan.header
        header["num_rows"], header["rows_changed"], header["num_admissions"] = batch, 1, batch
        plan.rows[:batch] = slots
        entries = plan.admissions[:batch]
        entries[:] = np.zeros((), entries.dtype)
        entries["slot"], entries["seed"] = slots, slots
        entries["temperature"], entries["top_p"] = self._temperature, 0.95
        entries["repetition_penalty"] = 1.0
        entries["num_logprobs"] = entries["num_prompt_logprobs"] = -1
        blocks_per_seq = min(state.block_table.shape[1], self._blocks.size // batch)
        blocks = self._blocks[: batch * blocks_per_seq].reshape(batch, blocks_per_seq)
        state.block_table[slots, :blocks_per_seq] = blocks
        state.num_tokens[slots] = context
        state.last_token[slots] = np.arange(batch)

    def step(self) -> float:
        """Seconds of one step. Raises RuntimeError where a sequence got no token."""
        start = self._clock()
        self.device.execute(self._plan, self._result)
        seconds = self._clock() - start
        header = self._plan.header
        header["rows_changed"], header["num_admissions"] = 0, 0
        if self._result.rows["token"][: int(header["num_rows"][0])].min() < 0:
            raise RuntimeError("a sequence ended: its slot was not admitted")
        return seconds
