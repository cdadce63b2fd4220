"""A frontend in this process, on a thread with its own loop, between a fake coordinator and a fake supervisor."""

import asyncio
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import uvloop
import zmq
from fakes import FakeCoordinator, FakeSupervisor, Reply
from shared_routes import new_routes

from albireo import sockets
from albireo.checkpoint import GenerationDefaults, ModelConfig, RopeConfig
from albireo.config import FrontendConfig, SchedulerConfig, SegmentFds
from albireo.frontend.server import serve
from albireo.frontend.service import TextModel
from albireo.shm import segment
from albireo.shm.flight import Unrecorded
from albireo.shm.layout import REQUEST_COUNTS
from albireo.shm.stats import EngineStats, initialise, stats_bytes

MODEL = "test-model"
NAME = "frontend-0"


def model_config(vocab_size: int, eos_token_ids: tuple[int, ...]) -> ModelConfig:
    """A model of which the frontend reads the vocabulary's size and the EOS ids."""
    return ModelConfig(
        architecture="Qwen3ForCausalLM", vocab_size=vocab_size, hidden_size=8, intermediate_size=8, num_layers=1,
        num_heads=1, num_kv_heads=1, head_dim=8, rms_norm_eps=1e-6, rope=RopeConfig(), max_position_embeddings=512,
        tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False,
        sliding_windows=(None,), dtype="float32", eos_token_ids=eos_token_ids, bos_token_id=None,
    )  # fmt: skip


def frontend_config(
    run_dir: Path, tokenizer_path: Path, socket_fd: int, stats_fd: int, **changes: Any
) -> FrontendConfig:
    """A config for tests: context of 256 tokens, EOS 2."""
    settings: dict[str, Any] = {
        "name": NAME, "index": 0, "run_dir": str(run_dir), "log_level": "info", "socket_fd": socket_fd,
        "max_logprobs": 20,
        "scheduler": SchedulerConfig(max_model_len=256), "segments": SegmentFds(-1, (), stats_fd),
        "model": model_config(402, (2,)), "generation_defaults": GenerationDefaults(),
        "served_model_names": (MODEL, "alias"), "tokenizer_path": str(tokenizer_path), "chat_template": None,
        "api_keys": (), "root_path": "", "access_log": False, "shutdown_timeout_s": 1.0, "version": "0.0.test",
    }  # fmt: skip
    return FrontendConfig(**(settings | changes))


class FrontendServer:
    """`with FrontendServer(run_dir, tokenizer_path, reply) as server:` serves on `server.url`.

    `ready=False` leaves the engine's readiness out. Keyword arguments change the config."""

    def __init__(
        self,
        run_dir: Path,
        tokenizer_path: Path,
        reply: Reply,
        step_s: float = 0.0,
        ready: bool = True,
        num_kv_blocks: int = 1000,
        **changes: Any,
    ) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        stats_fd = segment.create("stats", stats_bytes(1))
        initialise(stats_fd, 1)
        self.stats = EngineStats(stats_fd).engine
        self.beat()
        self.config = frontend_config(run_dir, tokenizer_path, self._listener.detach(), stats_fd, **changes)
        self.coordinator = FakeCoordinator(str(run_dir), reply, step_s)
        self.supervisor = FakeSupervisor(str(run_dir))
        self._ready, self._num_kv_blocks = ready, num_kv_blocks
        self._thread = threading.Thread(target=self._run, name="frontend")
        self.error: BaseException | None = None

    def beat(self) -> None:
        """What the coordinator's telemetry does."""
        self.stats["heartbeat_ns"] = self.stats["progress_ns"] = time.monotonic_ns()

    def __enter__(self) -> Self:
        self.coordinator.__enter__()
        self._thread.start()
        if self._ready:
            self.supervisor.engine_ready(NAME, self._num_kv_blocks)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._thread.is_alive():
            self.supervisor.stop(NAME)
        self.join()
        self.coordinator.__exit__(kind, error, tb)
        self.supervisor.close()
        if self.error is not None and error is None:
            raise self.error

    def join(self, timeout_s: float = 60.0) -> None:
        """Waits for the frontend's end."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the frontend did not stop"

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        control = sockets.open_socket(context, zmq.DEALER)
        control.setsockopt(zmq.IDENTITY, NAME.encode())
        control.connect(sockets.control_address(self.config.run_dir))
        config = msgspec.json.decode(msgspec.json.encode(self.config), type=FrontendConfig)
        counts = np.zeros(1, REQUEST_COUNTS)

        async def run() -> None:
            await serve(
                config,
                TextModel(config),
                [self.stats],
                counts,
                new_routes(1)[0],
                context,
                control,
                asyncio.Event(),
                Unrecorded(),
            )

        try:
            uvloop.run(run())
        except BaseException as error:
            self.error = error
        context.destroy()
