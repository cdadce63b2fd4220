"""Scheduler, rings and a real CPU worker in one process, stepped by hand: the engine without its processes."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.config import Dtype, SchedulerConfig, SegmentFds, WorkerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.scheduler import Scheduler
from albireo.gpu_worker.cpu_device import CpuDevice
from albireo.gpu_worker.worker import Worker
from albireo.messages import Finish, SamplingParams
from albireo.shm import segment
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing


@dataclass
class Result:
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    finish: Finish = Finish.NONE
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    """By position of the token that they yield, float32 [vocab_size]."""


class Pipeline:
    """Requests are told apart on the device by their seeds, so give each its own."""

    def __init__(
        self, path: Path, config: SchedulerConfig, num_blocks: int, dtype: Dtype = "float32", eos: tuple[int, ...] = ()
    ) -> None:
        checkpoint = read_checkpoint(str(path))
        self.config = config
        self.scheduler = Scheduler(config, num_blocks, eos, hash_key=b"key")
        self.results: dict[int, Result] = {}
        self._arrived = 0
        plan_ring, token_ring = PlanRing(config, 1), TokenRing(config)
        plan_fd = segment.create("plan", plan_ring.geometry.size)
        token_fd = segment.create("token", token_ring.geometry.size)
        plan_ring.initialise(plan_fd)
        token_ring.initialise(token_fd)
        self._plans, self._tokens = plan_ring.writer(plan_fd), token_ring.reader(token_fd)
        worker_config = WorkerConfig(
            name="worker-0", run_dir="", log_level="info", scheduler=config,
            segments=SegmentFds(plan_fd, (token_fd,), -1), rank=0, model=checkpoint.model,
            model_path=checkpoint.path, device="cpu", dtype=dtype,
            kv_cache_bytes=num_blocks * kv_bytes_per_block(checkpoint.model, config.block_size, dtype),
            num_threads=torch.get_num_threads(), load_format="safetensors", seed=0,
        )  # fmt: skip
        self.device = CpuDevice(worker_config, lambda stage, fraction: None)
        assert self.device.num_kv_blocks == num_blocks
        self._worker = Worker(
            self.device, plan_ring.reader(plan_fd, 0), token_ring.writer(token_fd), lambda: None,
            {"heartbeat_ns": 0, "step": 0}, time.monotonic_ns,  # type: ignore[arg-type]
        )  # fmt: skip
        os.close(plan_fd)
        os.close(token_fd)
        self._capture_logits()

    def _capture_logits(self) -> None:
        sample = self.device._sample
        compute_logits = self.device._model.compute_logits
        captured: list[torch.Tensor] = []

        def capture(hidden: torch.Tensor) -> torch.Tensor:
            captured.append(compute_logits(hidden))
            return captured[-1]

        def sample_and_keep(hidden: torch.Tensor, inputs: Any) -> Any:
            output = sample(hidden, inputs)
            seeds = self.device.state._seed[inputs.sampled_slots].tolist()
            rows = captured.pop().float()
            for seed, position, row in zip(seeds, inputs.sampled_positions.tolist(), rows, strict=True):
                self.results[seed].logits[position] = row.clone()
            return output

        self.device._model.compute_logits = capture  # type: ignore[method-assign]
        self.device._sample = sample_and_keep  # type: ignore[method-assign]

    def submit(self, prompt: list[int], sampling: SamplingParams) -> Result:
        result = self.results[sampling.seed] = Result(prompt)
        self._arrived += 1
        self.scheduler.submit(
            Request(
                frontend=0,
                request_id=sampling.seed,
                sampling=sampling,
                tokens=np.array(prompt, np.int32),
                priority=0,
                cache_salt="",
                arrival=self._arrived,
                max_total_tokens=min(len(prompt) + sampling.max_tokens, self.config.max_model_len),
            )
        )
        return result

    def run(self) -> None:
        """Until every request has ended."""
        scheduler = self.scheduler
        while scheduler.has_work:
            while scheduler.num_in_flight <= self.config.run_ahead and scheduler.has_work:
                if not scheduler.plan(self._plans.next_slot()):
                    break
                self._plans.publish()
            assert self._worker.step(), "work is left and no plan for it"
            slot = self._tokens.poll()
            assert slot is not None
            rows = scheduler.confirm(slot.rows[: int(slot.header["num_rows"][0])].copy())
            self._tokens.consume()
            columns = (rows.request_ids, rows.tokens, rows.finish)
            for request_id, token, finish in zip(*(column.tolist() for column in columns), strict=True):
                self.results[request_id].tokens.append(token)
                self.results[request_id].finish = Finish(finish)
        assert scheduler.pool.num_used == 0
