"""A GPU as a device: steps are launched one behind the other, and their results taken when the GPU is done."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from albireo.checkpoint import kv_bytes_per_block
from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.weight_shapes import weight_bytes
from albireo.config import WorkerConfig
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.cuda.attention import TritonAttention
from albireo.gpu_worker.cuda.backend import CudaBackend
from albireo.gpu_worker.cuda.decode_graphs import DecodeGraphs, bucket_sizes
from albireo.gpu_worker.cuda.memory import GIB, kv_cache_bytes
from albireo.gpu_worker.cuda.rank_samplers import make_step_sampler
from albireo.gpu_worker.cuda.rings import StepRings
from albireo.gpu_worker.cuda.row_masks import map_masks
from albireo.gpu_worker.cuda.runtime import Runtime
from albireo.gpu_worker.cuda.sampler import CudaSampler
from albireo.gpu_worker.cuda.state import CudaState, HostState
from albireo.gpu_worker.cuda.step import LaunchedStep, StepLauncher, WhoseLogprobs
from albireo.gpu_worker.cuda.swap_space import CudaSwapSpace
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.loader import TORCH_DTYPES, load_model
from albireo.shm.flight import Part, Recorder
from albireo.shm.plan_ring import PlanCounts, PlanSlot
from albireo.shm.token_ring import TokenSlot

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _InFlight:
    sequence: int
    num_rows: int
    """As records count them."""
    launched: LaunchedStep
    result: TokenSlot
    launched_ns: int
    has_copies: bool


class CudaDevice:
    """One rank's share of model, KV cache and sampling on a GPU, and the request state."""

    name = "cuda"

    def __init__(
        self,
        config: WorkerConfig,
        runtime: Runtime,
        collectives: Collectives,
        beat: Callable[[], None],
        report: Callable[[str, float], None],
        recorder: Recorder,
        count_busy: Callable[[int], None] = lambda time_ns: None,
    ) -> None:
        """`beat` renews the rank's heartbeat while it starts; `count_busy` is told of each step how long the device
        took for it. Raises OutOfDeviceMemoryError."""
        self._runtime = runtime
        self._count_busy = count_busy
        self._num_ranks = config.num_workers
        self._recorder = recorder
        self.wake_fd = runtime.wake.fd
        scheduler, times = config.scheduler, StageTimes()
        shard, dtype = shard_model(config.model, config.rank, config.num_workers), TORCH_DTYPES[config.dtype]
        local = shard.local(config.model)
        attention = TritonAttention(runtime.num_multiprocessors)
        with torch.inference_mode():
            runtime.check_weights_fit(weight_bytes(config.model, config.dtype) // config.num_workers)
            model = load_model(config, shard, attention, collectives, report, CudaBackend(runtime.device))
            model.on_layer = beat
            times.end("weights")
            report("preparing kernels", 0.0)
            self._rings = StepRings(runtime, scheduler, config.num_workers, config.rank, config.segments)
            self._state, self._host = CudaState(scheduler, self._rings, runtime.device), HostState(scheduler)
            masks = map_masks(runtime, config.segments.grammar, scheduler.num_slots, config.model.vocab_size)
            whole_rows = CudaSampler(
                config.model.vocab_size, self._state.admissions, scheduler.max_num_seqs, scheduler.max_model_len,
                runtime.device, masks,
            )  # fmt: skip
            self._sampler = make_step_sampler(
                config.sampling_mode, whole_rows, collectives, config.model.vocab_size
            )  # fmt: skip
            one_block = KVCache(local, 1, scheduler.block_size, dtype, runtime.device)
            self._launcher = StepLauncher(
                scheduler, runtime, self._rings, self._state, model, one_block, attention, self._sampler
            )
            weights_bytes = runtime.allocated_bytes()
            self._launcher.rehearse()
            times.end("largest step")
            block_bytes = kv_bytes_per_block(local, scheduler.block_size, config.dtype)
            kv_bytes = config.kv_cache_bytes or kv_cache_bytes(
                runtime.memory(weights_bytes), config.gpu_memory_utilization, scheduler.max_blocks_per_seq * block_bytes
            )
            self._launcher.kv = KVCache(local, kv_bytes // block_bytes, scheduler.block_size, dtype, runtime.device)
            if scheduler.num_swap_blocks:
                report("pinning the swap space", 0.0)
                self._swap = CudaSwapSpace(self._launcher.kv, local, scheduler, runtime, beat)
            self._decode: Callable[[int], None] = self._launcher.decode
            sizes = bucket_sizes(scheduler.max_num_seqs)

            def on_captured(count: int) -> None:
                beat()
                report("capturing steps", count / len(sizes))

            if config.enforce_eager:
                for size in sizes:  # kernels are compiled now, not in a request's step
                    self._launcher.decode(size)
                    beat()
            else:
                self._decode = DecodeGraphs(runtime, self._launcher.decode, sizes, on_captured).run
            self._state.step.fill_(self._rings.last_step)  # captures were rehearsed on the empty ring, and counted
            times.end("captured steps")
        self.num_kv_blocks: int = self._launcher.kv.num_blocks
        model.on_layer = lambda: None
        self._in_flight: deque[_InFlight] = deque()
        self._num_done = 0
        """Steps in flight that are done."""
        log.info(
            "%s; weights %.1f GiB, KV cache %.1f GiB, %.1f GiB allocated in all", times, weights_bytes / GIB,
            kv_bytes / GIB, runtime.allocated_bytes() / GIB,
        )  # fmt: skip

    @torch.inference_mode()
    def launch(self, plan: PlanSlot, result: TokenSlot) -> None:
        counts, host, launcher = plan.counts(), self._host, self._launcher
        host.apply(plan, counts)
        self._rings.send_plan(counts)
        begin_ns = self._recorder.mark(Part.FETCH_PLAN)
        if counts.num_admissions:
            self._sampler.admit(plan.admissions[: counts.num_admissions], plan.extras[: counts.num_extras])
        if has_copies := counts.num_swap_outs + counts.num_swap_ins > 0:
            launcher.stamp_swap()
            self._swap.copy(plan, counts)
        if counts.num_chunks:
            launched = self._launch_mixed(plan, counts)
        else:
            self._decode(counts.num_rows)
            logprobs = [launcher.decode_logprobs(counts.sequence, host)] if host.wants_logprobs else []
            launched = LaunchedStep(counts.num_rows, logprobs, True)
        self._runtime.finish(*self._rings.fetch_results(counts.sequence, launched.num_rows))
        num_rows = counts.num_rows + counts.num_chunk_tokens
        self._in_flight.append(_InFlight(counts.sequence, num_rows, launched, result, begin_ns, has_copies))
        self._recorder.mark(Part.INPUT_PREP)

    def finish_oldest(self) -> bool:
        if not self._num_done:
            self._num_done = self._runtime.wake.take()
            if not self._num_done:
                return False
        self._num_done -= 1
        done = self._in_flight.popleft()
        header = done.result.header
        header["num_rows"] = done.launched.num_rows
        header["num_logprobs"] = address_logprobs(done.launched.logprobs, done.result) if done.launched.logprobs else 0
        begin_ns, end_ns = self._note_times(done)
        header["begin_ns"], header["end_ns"] = begin_ns, end_ns
        self._count_busy(end_ns - begin_ns)
        return True

    def _launch_mixed(self, plan: PlanSlot, counts: PlanCounts) -> LaunchedStep:
        try:
            return self._launcher.mixed(plan, counts, self._host)
        except torch.OutOfMemoryError:
            if self._num_ranks > 1:  # the other ranks do not repeat the step's collectives
                raise
            # Memory for the largest step was taken at the start and is torch's own. Should pieces of it be too small
            # now, give them back and launch the step again: until its last kernel, it changes nothing
            log.warning("out of GPU memory in step %d: trying again", counts.sequence, exc_info=True)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            return self._launcher.mixed(plan, counts, self._host)

    def _note_times(self, done: _InFlight) -> tuple[int, int]:
        """Records the device's parts of a step, fills in how long its block copies took; returns when its work began
        and ended."""
        header = done.result.header
        if not self._runtime.is_timed:
            return done.launched_ns, time.monotonic_ns()
        begin, sampling, end = header["stamps"][0].tolist()
        end_ns = self._runtime.host_ns(end)
        begin_ns = end_ns - (end - begin)
        if done.has_copies:
            header["swap_ns"] = swap_ns = begin - int(header["swap_ns"][0])
            self._recorder.record(Part.SWAP, done.sequence, begin_ns - swap_ns, begin_ns, done.num_rows)
        sampling_ns = end_ns - (end - sampling) if done.launched.samples else end_ns
        self._recorder.record(Part.FORWARD, done.sequence, begin_ns, sampling_ns, done.num_rows)
        if done.launched.samples:
            self._recorder.record(Part.SAMPLE, done.sequence, sampling_ns, end_ns, done.num_rows)
        return begin_ns, end_ns


def address_logprobs(whose: list[WhoseLogprobs], result: TokenSlot) -> int:
    """Fills in who the records are of that the device has left in `result`, and drops those of rows that turned out to
    be dead or to wait (their token is below 0); returns how many there are."""
    slots = np.concatenate([part.slots for part in whose])
    records = result.logprobs[: slots.size]
    records["slot"] = slots
    records["generation"] = np.concatenate([part.generations for part in whose])
    is_live = records["token"] >= 0
    count = int(np.count_nonzero(is_live))
    if count < records.size:
        records[:count] = records[is_live]
    return count


class StageTimes:
    """How long the stages of a start took, for its log line."""

    def __init__(self) -> None:
        self._last_ns = time.monotonic_ns()
        self._parts: list[str] = []

    def end(self, stage: str) -> None:
        now_ns = time.monotonic_ns()
        self._parts.append(f"{stage} {(now_ns - self._last_ns) / 1e9:.1f} s")
        self._last_ns = now_ns

    def __str__(self) -> str:
        return ", ".join(self._parts)
