"""Scheduler, rings and a real CPU worker in one process, stepped by hand: the engine without its processes."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pipeline_masks import PipelineMasks
from thread_group import ThreadGroup

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.config import DeviceName, Dtype, SamplingMode, SchedulerConfig, SegmentFds, WorkerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.scheduler import Scheduler
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.cpu_device import CpuDevice
from albireo.gpu_worker.stream_worker import StreamWorker
from albireo.gpu_worker.worker import Worker
from albireo.messages import WAITED, Finish, SamplingParams
from albireo.shm import layout, segment
from albireo.shm.flight import Unrecorded
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing


def cuda_device(config: WorkerConfig, *rest: Any) -> Any:
    """The CUDA device, on the CPU where there is no GPU."""
    from albireo.gpu_worker.cuda.device import CudaDevice
    from albireo.gpu_worker.cuda.runtime import CudaRuntime, HostRuntime

    return CudaDevice(config, CudaRuntime(0) if torch.cuda.is_available() else HostRuntime(), *rest)


@dataclass
class Result:
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    finish: Finish = Finish.NONE
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    """By position of the token that they yield, float32 [vocab_size]."""
    logprobs: dict[int, np.void] = field(default_factory=dict)
    """LOGPROB records by position."""


class Pipeline:
    """Scheduler, rings and `size` ranks, which are threads that take turns. Requests are told apart on the device by
    their seeds, so give each its own."""

    def __init__(
        self, path: Path, config: SchedulerConfig, num_blocks: int, dtype: Dtype = "float32", eos: tuple[int, ...] = (),
        size: int = 1, sampling_mode: SamplingMode = "local", device: DeviceName = "cpu", enforce_eager: bool = False,
        mask_lateness: int = 0,
    ) -> None:  # fmt: skip
        """`device` cuda: a GPU if there is one, else its kernels in Triton's interpreter; no logits are kept there.
        `mask_lateness`: as of `PipelineMasks`."""
        checkpoint = read_checkpoint(str(path))
        self.config = config
        self.scheduler = Scheduler(config, num_blocks, eos, b"key", size, sampling_mode)
        self.results: dict[int, Result] = {}
        self._arrived = 0
        self.num_waits = 0
        """Rows whose mask was not there."""
        self.num_beats = 0
        """Signs of life that all ranks have given."""
        self.num_chunk_tokens = 0
        """Of prompts, and of sequences that were computed again."""
        self._vocab_size = checkpoint.model.vocab_size
        plan_ring, token_ring = PlanRing(config, size), TokenRing(config)
        plan_fd = segment.create("plan", plan_ring.geometry.size)
        token_fds = [segment.create("token", token_ring.geometry.size) for _ in range(size)]
        self._masks = PipelineMasks(config.num_slots, self._vocab_size, mask_lateness)
        self._num_planned = self._num_confirmed = 0
        plan_ring.initialise(plan_fd)
        for fd in token_fds:
            token_ring.initialise(fd)
        self._plans, self._tokens = plan_ring.writer(plan_fd), [token_ring.reader(fd) for fd in token_fds]
        self._group = ThreadGroup(size) if size > 1 else None
        self._captured: list[list[torch.Tensor]] = [[] for _ in range(size)]
        self._sampled: tuple[list[int], list[int]] = ([], [])
        """Seeds and positions of the rows that the last step sampled."""
        local = shard_model(checkpoint.model, 0, size).local(checkpoint.model)
        block_bytes = kv_bytes_per_block(local, config.block_size, dtype)

        def start(rank: int) -> Worker | StreamWorker:
            worker_config = WorkerConfig(
                name=f"worker-{rank}", run_dir="", log_level="info", scheduler=config,
                segments=SegmentFds(plan_fd, tuple(token_fds), -1, grammar=self._masks.fd), rank=rank, num_workers=size,
                sampling_mode=sampling_mode, collectives="shm", model=checkpoint.model,
                model_path=checkpoint.path, device=device, dtype=dtype, kv_cache_bytes=num_blocks * block_bytes,
                num_threads=torch.get_num_threads(), load_format="safetensors", seed=0,
                enforce_eager=enforce_eager,
            )  # fmt: skip
            collectives = self._group.collectives[rank] if self._group else Alone()
            recorder = Unrecorded()
            rings = plan_ring.reader(plan_fd, rank), token_ring.writer(token_fds[rank])
            rest = (*rings, lambda: None, np.zeros(1, layout.WORKER_HEARTBEAT), recorder, time.monotonic_ns)
            made: tuple[Any, ...] = (worker_config, collectives, self._beat, lambda stage, fraction: None, recorder)
            if device == "cuda":
                return StreamWorker(cuda_device(*made), *rest)
            cpu_device = CpuDevice(*made)
            assert cpu_device.num_kv_blocks == num_blocks
            self._capture_logits(rank, cpu_device)
            return Worker(cpu_device, *rest)

        self._workers = self._group.run(start) if self._group else [start(0)]
        for fd in (plan_fd, *token_fds, self._masks.fd):
            os.close(fd)

    def _beat(self) -> None:
        self.num_beats += 1

    def _capture_logits(self, rank: int, device: CpuDevice) -> None:
        sample, captured = device._sample, self._captured[rank]

        def sample_and_keep(logits: torch.Tensor, rows: Any, *rest: Any) -> Any:
            captured[:] = [logits.float().clone()]
            output = sample(logits, rows, *rest)
            if rank == 0:
                self._sampled = (
                    device.state.sampling.seed[rows.slots].tolist(), rows.positions.tolist()
                )  # fmt: skip
            return output

        device._sample = sample_and_keep  # type: ignore[method-assign, assignment]

    def _step(self) -> None:
        """Every rank runs the next plan."""
        self._sampled = ([], [])
        if self._group:
            assert all(self._group.run(lambda rank: self._workers[rank].step())), "work is left and no plan for it"
        else:
            # a device that runs by itself may have launched the plan while results were waited for
            launched = self._workers[0].step()
            assert launched or isinstance(self._workers[0], StreamWorker), "work is left and no plan for it"
        if self._sampled[0]:
            logits = torch.cat([captured[0] for captured in self._captured], dim=1)[:, : self._vocab_size]
            for seed, position, row in zip(*self._sampled, logits, strict=True):
                self.results[seed].logits[position] = row.clone()

    def submit(self, prompt: list[int], sampling: SamplingParams, has_grammar: bool = False) -> Result:
        """`has_grammar`: its tokens follow `pipeline_masks.mask_of`."""
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
                grammar_handle=self._arrived if has_grammar else 0,
                max_total_tokens=min(len(prompt) + sampling.max_tokens, self.config.max_model_len),
            )
        )
        return result

    def run(self) -> None:
        """Until every request has ended."""
        scheduler = self.scheduler
        while scheduler.has_work:
            while scheduler.num_in_flight <= self.config.run_ahead and scheduler.has_work:
                plan = self._plans.next_slot()
                if not scheduler.plan(plan):
                    break
                self.num_chunk_tokens += int(plan.header["num_chunk_tokens"][0])
                self._plans.publish()
                self._num_planned += 1
                self._masks.planned(self._num_planned, scheduler.grammar_changes)
                scheduler.grammar_changes = []
                self._masks.publish(self._num_confirmed)
            self._step()
            self._confirm()
        assert scheduler.pool.num_used == scheduler.swap.pool.num_used == 0

    def _confirm(self) -> None:
        outputs = []
        for ring, worker in zip(self._tokens, self._workers, strict=True):
            while (slot := ring.poll()) is None:
                assert isinstance(worker, StreamWorker), "a step has returned and its results are not there"
                worker.step()
            num_rows, num_logprobs = (int(slot.header[name][0]) for name in ("num_rows", "num_logprobs"))
            outputs.append((slot.rows[:num_rows].copy(), slot.logprobs[:num_logprobs].copy()))
        for ring in self._tokens:
            ring.consume()
        for output in outputs[1:]:
            assert all(np.array_equal(*pair) for pair in zip(output, outputs[0], strict=True)), "ranks disagree"
        rows = self.scheduler.confirm(*outputs[0])
        self.num_waits += int(np.count_nonzero(outputs[0][0]["token"] == WAITED))
        self._num_confirmed += 1
        self._masks.confirmed(self._num_confirmed, self.scheduler.take_constrained())
        for request_id, record in zip(rows.logprobs.request_ids.tolist(), rows.logprobs.records, strict=True):
            self.results[request_id].logprobs[int(record["position"])] = record
        columns = (rows.request_ids, rows.tokens, rows.finish)
        for request_id, token, finish in zip(*(column.tolist() for column in columns), strict=True):
            self.results[request_id].tokens.append(token)
            self.results[request_id].finish = Finish(finish)
