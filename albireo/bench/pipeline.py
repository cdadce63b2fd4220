"""`albireo-run bench pipeline`: what the control plane costs, measured on an engine whose device computes nothing."""

import asyncio
import socket
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop
from msgspec import Struct

from albireo.bench.bare_engine import MakeSpecs, Snapshot, running_engine
from albireo.bench.pipeline_client import PipelineClient
from albireo.bench.pipeline_http import SERVED_NAME, HttpClients
from albireo.checkpoint import kv_bytes_per_block
from albireo.checkpoint.shard import shard_model
from albireo.config import SegmentFds
from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.listener import ListenAddress, listening
from albireo.serve import ServeArgs, child_specs, engine_specs
from albireo.supervisor.child_process import ChildSpec

_LOG_LEVEL: Final = "warning"
_ANY_KV_BYTES = 2**50
"""More than any engine here needs; the null device allocates none of it."""


class PipelineSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """One run: every batch size on an engine of its own."""

    model: str
    batches: tuple[int, ...]
    """Requests that are always running."""
    step_ms: float
    run_ahead: int
    tensor_parallel_size: int
    prompt_len: int
    output_len: int | None
    """None: as long as the model allows."""
    warmup_s: float
    duration_s: float
    http: bool


class Measurement(Struct, frozen=True):
    """What one engine did in the measured time. CPU is utime + stime of whole processes."""

    client: str
    """`zmq`: no frontend; `http-stream`, `http`: through a frontend, streamed or not."""
    batch: int
    wall_s: float
    tokens: int
    steps: int
    tokens_per_s: float
    steps_per_s: float
    cpu_us_per_step: dict[str, float]
    cpu_us_per_token: dict[str, float]
    core_share: dict[str, float]
    """By role: coordinator, worker (all ranks together), frontend, client; 1 is one core."""
    step_device_us: float
    """Mean time of a step on the device."""
    step_gap_us: float
    """Mean time between two steps in which there was something to do."""
    interval_p50_us: float | None
    """Between two token messages at the client; only where it is a frontend itself."""
    interval_p99_us: float | None


def measure(settings: PipelineSettings, batch: int, client: str) -> Measurement:
    """One engine, started, loaded, measured and stopped. Raises StartupError, EngineLostError, RejectedError,
    HttpFailedError."""
    engine = plan(settings, batch)
    output_len = settings.output_len or engine.scheduler.max_model_len - settings.prompt_len
    if client == "zmq":
        return _measure_zmq(settings, engine, batch, output_len)
    return _measure_http(settings, engine, batch, output_len, client)


def plan(settings: PipelineSettings, batch: int) -> EnginePlan:
    """An engine in which `batch` sequences of the longest kind fit, and prompts beside them in a step."""
    engine = plan_engine(
        EngineArgs(
            model=settings.model,
            max_num_seqs=batch,
            max_num_batched_tokens=max(2048, 2 * batch),
            run_ahead=settings.run_ahead,
            tensor_parallel_size=settings.tensor_parallel_size,
            kv_cache_bytes=_ANY_KV_BYTES,
            device="null",
            null_step_ms=settings.step_ms,
        ),
        num_cpus=1,
    )
    local = shard_model(engine.checkpoint.model, 0, engine.num_workers).local(engine.checkpoint.model)
    # a sequence more than there can be at once, and what the scheduler keeps free when it admits
    num_blocks = (batch + 1) * engine.scheduler.max_blocks_per_seq * 102 // 100 + 1
    block_bytes = kv_bytes_per_block(local, engine.scheduler.block_size, engine.dtype)
    return msgspec.structs.replace(engine, kv_cache_bytes=num_blocks * block_bytes)


def _measure_zmq(settings: PipelineSettings, engine: EnginePlan, batch: int, output_len: int) -> Measurement:
    def specs(run_dir: str, segments: SegmentFds) -> list[ChildSpec]:
        return engine_specs(engine, _LOG_LEVEL, run_dir, segments)

    with running_engine(engine, specs) as running:
        client = PipelineClient(
            running.run_dir, batch, settings.prompt_len, output_len, engine.checkpoint.model.vocab_size
        )
        try:
            client.run(settings.warmup_s)
            first_message, before = len(client.arrival_ns), running.snapshot()
            client.run(settings.duration_s)
            after = running.snapshot()
            running.check()
        finally:
            client.close()
    intervals = np.diff(np.array(client.arrival_ns[first_message:])) / 1e3
    return _summarise("zmq", batch, before, after, intervals)


def _measure_http(
    settings: PipelineSettings, engine: EnginePlan, batch: int, output_len: int, client: str
) -> Measurement:
    with listening(ListenAddress("127.0.0.1", 0)) as opened:
        listener = opened.socket
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with running_engine(engine, _server_specs(engine, listener)) as running:
            vocab_size = engine.checkpoint.model.vocab_size
            clients = HttpClients(url, batch, client == "http-stream", settings.prompt_len, output_len, vocab_size)
            snapshots: list[Snapshot] = []
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                marks_s = (settings.warmup_s, settings.duration_s)
                runner.run(clients.run(marks_s, lambda: snapshots.append(running.snapshot())))
            running.check()
    return _summarise(client, batch, snapshots[0], snapshots[1], np.empty(0))


def _server_specs(engine: EnginePlan, listener: socket.socket) -> MakeSpecs:
    args = ServeArgs(
        engine=EngineArgs(model=engine.checkpoint.path),
        address=ListenAddress("127.0.0.1", 0),
        served_model_names=(SERVED_NAME,),
        api_keys=(),
        root_path="",
        access_log=False,
        shutdown_timeout_s=0.0,
        worker_timeout_s=30.0,
        max_logprobs=0,
        num_frontends=1,
        chat_template=None,
        generation_config="vllm",
        log_level=_LOG_LEVEL,
    )
    return lambda run_dir, segments: child_specs(
        args, engine, args.served_model_names, None, run_dir, [segments], listener.fileno()
    )


def _summarise(
    client: str, batch: int, before: Snapshot, after: Snapshot, intervals_us: npt.NDArray[np.float64]
) -> Measurement:
    wall_s = after.time_s - before.time_s
    tokens, steps = after.num_tokens - before.num_tokens, after.num_steps - before.num_steps
    cpu_s = {role: seconds - before.cpu_s[role] for role, seconds in after.cpu_s.items()}
    p50, p99 = np.percentile(intervals_us, [50, 99]).tolist() if intervals_us.size else (None, None)
    return Measurement(
        client=client,
        batch=batch,
        wall_s=wall_s,
        tokens=tokens,
        steps=steps,
        tokens_per_s=tokens / wall_s,
        steps_per_s=steps / wall_s,
        cpu_us_per_step={role: 1e6 * seconds / max(1, steps) for role, seconds in cpu_s.items()},
        cpu_us_per_token={role: 1e6 * seconds / max(1, tokens) for role, seconds in cpu_s.items()},
        core_share={role: seconds / wall_s for role, seconds in cpu_s.items()},
        step_device_us=1e6 * (after.device_s - before.device_s) / max(1, steps),
        step_gap_us=1e6 * (after.exposed_s - before.exposed_s) / max(1, steps),
        interval_p50_us=p50,
        interval_p99_us=p99,
    )
