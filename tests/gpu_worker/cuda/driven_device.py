"""The CUDA device, its steps planned by hand: what it samples, step by step."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from adjusted_slots import words_of_mask
from numpy.typing import NDArray
from thread_group import ThreadGroup

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.config import SamplingMode, SchedulerConfig, SegmentFds, WorkerConfig
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.cuda.device import CudaDevice
from albireo.gpu_worker.cuda.runtime import CudaRuntime, HostRuntime
from albireo.gpu_worker.stream_worker import StreamWorker
from albireo.shm import layout, segment
from albireo.shm.flight import Unrecorded
from albireo.shm.grammar_masks import GrammarMasks, mask_tag
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenReader, TokenRing


class Sampled(NamedTuple):
    slot: int
    token: int
    finish: int


@dataclass
class Prompt:
    """A request enters a slot, and its whole prompt is computed."""

    slot: int
    generation: int
    tokens: Sequence[int]
    admission: dict[str, Any] = field(default_factory=dict)
    """Fields of `layout.ADMISSION`."""


class DrivenDevice:
    """Slot s has the KV blocks that come s-th. Several ranks are threads that take turns."""

    def __init__(
        self,
        path: Path,
        config: SchedulerConfig,
        size: int = 1,
        mode: SamplingMode = "gathered",
        num_steps_before: int = 0,
    ) -> None:
        """`num_steps_before`: how many steps workers have run that are dead."""
        checkpoint = read_checkpoint(str(path))
        model = checkpoint.model
        self.config, self.vocab_size = config, model.vocab_size
        plan_ring, token_ring = PlanRing(config, size), TokenRing(config)
        geometry = GrammarMasks(config.num_slots, model.vocab_size)
        plan_fd = segment.create("plan", plan_ring.geometry.size)
        token_fds = tuple(segment.create("token", token_ring.geometry.size) for _ in range(size))
        grammar_fd = segment.create("grammar", geometry.size)
        plan_ring.initialise(plan_fd)
        geometry.initialise(grammar_fd)
        for fd in token_fds:
            token_ring.initialise(fd)
            token_ring.geometry.restart(fd, num_steps_before)
        plan_ring.geometry.restart(plan_fd, num_steps_before)
        local = shard_model(model, 0, size).local(model)
        num_blocks = config.num_slots * config.max_blocks_per_seq
        self._group = ThreadGroup(size)

        def start(rank: int) -> StreamWorker:
            worker_config = WorkerConfig(
                name=f"worker-{rank}", run_dir="", log_level="info", scheduler=config,
                segments=SegmentFds(plan_fd, token_fds, -1, grammar=grammar_fd), rank=rank, num_workers=size,
                sampling_mode=mode, collectives="shm", model=model, model_path=checkpoint.path, device="cuda",
                dtype="float32", kv_cache_bytes=num_blocks * kv_bytes_per_block(local, config.block_size, "float32"),
                num_threads=1, load_format="safetensors", seed=0,
            )  # fmt: skip
            runtime = CudaRuntime(0) if torch.cuda.is_available() else HostRuntime()
            collectives = self._group.collectives[rank] if size > 1 else Alone()
            device = CudaDevice(
                worker_config, runtime, collectives, lambda: None, lambda stage, fraction: None, Unrecorded()
            )
            return StreamWorker(
                device, plan_ring.reader(plan_fd, rank), token_ring.writer(token_fds[rank]), lambda: None,
                np.zeros(1, layout.WORKER_HEARTBEAT), Unrecorded(), time.monotonic_ns,
            )  # fmt: skip

        self._workers = self._group.run(start) if size > 1 else [start(0)]
        self._plans, self._results = plan_ring.writer(plan_fd), [token_ring.reader(fd) for fd in token_fds]
        self._masks = geometry.attach(grammar_fd)
        self.logprobs: NDArray[Any] = np.empty(0, layout.LOGPROB)
        """Of the step that was collected last."""
        for fd in (plan_fd, *token_fds, grammar_fd):
            os.close(fd)

    def publish(self, slot: int, generation: int, position: int, allowed: NDArray[np.bool_]) -> None:
        """The mask [vocab] for the token at `position`."""
        self._masks.clear(slot)
        self._masks.masks[slot] = words_of_mask(allowed)
        self._masks.publish(slot, mask_tag(generation, position))

    def launch(self, rows: Sequence[int] = (), prompts: Sequence[Prompt] = ()) -> None:
        """A step that decodes `rows`, slots, and computes `prompts`."""
        plan, width = self._plans.next_slot(), self.config.max_blocks_per_seq
        counts = {"num_rows": len(rows), "rows_changed": 1, "num_chunks": len(prompts), "num_admissions": len(prompts)}
        counts |= {"num_appends": width * len(prompts), "num_chunk_tokens": sum(len(each.tokens) for each in prompts)}
        for name in layout.PLAN_HEADER.names or ():
            if name != "sequence":
                plan.header[name] = counts.get(name, 0)
        plan.rows[: len(rows)] = rows
        first = 0
        for number, prompt in enumerate(prompts):
            length, slot = len(prompt.tokens), prompt.slot
            plan.chunks[number] = (slot, 0, length, 1, length + 1, -1)
            plan.chunk_tokens[first : first + length] = prompt.tokens
            first += length
            plan.admissions[number] = admission(prompt)
            appends = plan.appends[number * width : (number + 1) * width]
            appends["slot"], appends["index"] = slot, np.arange(width)
            appends["block"] = slot * width + np.arange(width)
        self._plans.publish()
        workers = self._workers
        if len(workers) == 1:
            assert workers[0].step(), "a plan is there"
        else:
            assert all(self._group.run(lambda rank: workers[rank].step())), "a plan is there"

    def collect(self) -> list[Sampled]:
        """The oldest step's results, once it is done; the same on all ranks."""
        outputs = [self._collect_from(*rank) for rank in zip(self._results, self._workers, strict=True)]
        rows, self.logprobs = outputs[0]
        for others in outputs[1:]:
            assert others[0] == rows
            assert np.array_equal(others[1], self.logprobs)
        return rows

    def _collect_from(self, results: TokenReader, worker: StreamWorker) -> tuple[list[Sampled], NDArray[Any]]:
        end = time.monotonic() + 60
        while (slot := results.poll()) is None:
            assert time.monotonic() < end, "the device does not come to an end"
            worker.step()
        num_rows, num_logprobs = (int(slot.header[name][0]) for name in ("num_rows", "num_logprobs"))
        rows = [Sampled(slot, token, finish) for slot, _, token, finish in slot.rows[:num_rows].tolist()]
        logprobs = slot.logprobs[:num_logprobs].copy()
        results.consume()
        return rows, logprobs

    def step(self, rows: Sequence[int] = (), prompts: Sequence[Prompt] = ()) -> list[int]:
        """The tokens of `rows`, then of `prompts`."""
        self.launch(rows, prompts)
        sampled = self.collect()
        assert [row.slot for row in sampled] == [*rows, *(prompt.slot for prompt in prompts)]
        return [row.token for row in sampled]


def admission(prompt: Prompt) -> NDArray[Any]:
    """`layout.ADMISSION` []"""
    entry = np.zeros((), layout.ADMISSION)
    entry["top_p"] = entry["repetition_penalty"] = 1.0
    entry["num_logprobs"] = entry["num_prompt_logprobs"] = -1
    entry["slot"], entry["generation"] = prompt.slot, prompt.generation
    for name, value in prompt.admission.items():
        entry[name] = value
    return entry
