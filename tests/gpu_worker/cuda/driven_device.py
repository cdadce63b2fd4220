"""The CUDA device of one rank, its steps planned by hand: what it samples, step by step."""

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

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.config import SchedulerConfig, SegmentFds, WorkerConfig
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.cuda.device import CudaDevice
from albireo.gpu_worker.cuda.runtime import CudaRuntime, HostRuntime
from albireo.gpu_worker.stream_worker import StreamWorker
from albireo.shm import layout, segment
from albireo.shm.flight import Unrecorded
from albireo.shm.grammar_masks import GrammarMasks, mask_tag
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing


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
    """Slot s has the KV blocks that come s-th."""

    def __init__(self, path: Path, config: SchedulerConfig) -> None:
        checkpoint = read_checkpoint(str(path))
        model = checkpoint.model
        self.config, self.vocab_size = config, model.vocab_size
        plan_ring, token_ring = PlanRing(config, 1), TokenRing(config)
        geometry = GrammarMasks(config.num_slots, model.vocab_size)
        rings = {"plan": plan_ring.geometry.size, "token": token_ring.geometry.size, "grammar": geometry.size}
        plan_fd, token_fd, grammar_fd = fds = [segment.create(name, size) for name, size in rings.items()]
        plan_ring.initialise(plan_fd)
        token_ring.initialise(token_fd)
        geometry.initialise(grammar_fd)
        block_bytes = kv_bytes_per_block(model, config.block_size, "float32")
        worker_config = WorkerConfig(
            name="worker-0", run_dir="", log_level="info", scheduler=config,
            segments=SegmentFds(plan_fd, (token_fd,), -1, grammar=grammar_fd), rank=0, num_workers=1,
            sampling_mode="local", collectives="shm", model=model, model_path=checkpoint.path, device="cuda",
            dtype="float32", kv_cache_bytes=config.num_slots * config.max_blocks_per_seq * block_bytes, num_threads=1,
            load_format="safetensors", seed=0,
        )  # fmt: skip
        runtime = CudaRuntime(0) if torch.cuda.is_available() else HostRuntime()
        device = CudaDevice(
            worker_config, runtime, Alone(), lambda: None, lambda stage, fraction: None, Unrecorded()
        )  # fmt: skip
        self._plans, self._results = plan_ring.writer(plan_fd), token_ring.reader(token_fd)
        self._worker = StreamWorker(
            device, plan_ring.reader(plan_fd, 0), token_ring.writer(token_fd), lambda: None,
            np.zeros(1, layout.WORKER_HEARTBEAT), Unrecorded(), time.monotonic_ns,
        )  # fmt: skip
        self._masks = geometry.attach(grammar_fd)
        self.logprobs: NDArray[Any] = np.empty(0, layout.LOGPROB)
        """Of the step that was collected last."""
        for fd in fds:
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
        assert self._worker.step(), "a plan is there"

    def collect(self) -> list[Sampled]:
        """The oldest step's results, once it is done."""
        end = time.monotonic() + 60
        while (slot := self._results.poll()) is None:
            assert time.monotonic() < end, "the device does not come to an end"
            self._worker.step()
        num_rows, num_logprobs = (int(slot.header[name][0]) for name in ("num_rows", "num_logprobs"))
        rows = [Sampled(slot, token, finish) for slot, _, token, finish in slot.rows[:num_rows].tolist()]
        self.logprobs = slot.logprobs[:num_logprobs].copy()
        self._results.consume()
        return rows

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
