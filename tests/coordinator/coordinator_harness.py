"""The coordinator actor over real sockets and rings, with the fake device as its worker, in one thread."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq
from fake_device import FakeDevice

from albireo import sockets
from albireo.config import CoordinatorConfig, SchedulerConfig, SegmentFds
from albireo.coordinator.coordinator import Coordinator
from albireo.coordinator.grammars import NoGrammars
from albireo.coordinator.rings import EngineRings
from albireo.coordinator.scheduler import Scheduler
from albireo.coordinator.telemetry import Telemetry
from albireo.engine_segments import reset_rings
from albireo.messages import (
    Crashed,
    Finish,
    Grammar,
    SamplingParams,
    Submit,
    ToFrontend,
    Tokens,
    encode,
    frontend_decoder,
)
from albireo.shm import flight, segment, stats
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing

SCHEDULER = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=64, block_size=4)
EOS = (3, 4)
NUM_BLOCKS = 20


MARK = b"mark"


class Harness:
    """A coordinator, its workers and two frontends' sockets."""

    def __init__(
        self, run_dir: str, num_workers: int = 1, scheduler: SchedulerConfig = SCHEDULER, replica: int = 0,
        queue_timeout_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = self._open(zmq.ROUTER)
        router.bind(f"ipc://{run_dir}/router.sock")
        self.frontends = []
        for index in range(2):
            dealer = self._open(zmq.DEALER)
            dealer.setsockopt(zmq.IDENTITY, f"frontend-{index}".encode())
            dealer.connect(f"ipc://{run_dir}/router.sock")
            self.frontends.append(dealer)
        plan_ring, token_ring = PlanRing(scheduler, num_workers), TokenRing(scheduler)
        token_sizes = [token_ring.geometry.size] * num_workers
        fds = [segment.create("x", size) for size in (plan_ring.geometry.size, 4096, *token_sizes)]
        plan_fd, stats_fd, *token_fds = fds
        plan_ring.initialise(plan_fd)
        for fd in token_fds:
            token_ring.initialise(fd)
        stats.initialise(stats_fd, num_workers)
        self.stats = stats.EngineStats(stats_fd).engine
        self._decoder = frontend_decoder()
        self.now_ns = 1
        config = CoordinatorConfig(
            name=f"coordinator-{replica}", replica=replica, run_dir=run_dir, log_level="info", scheduler=scheduler,
            segments=SegmentFds(plan_fd, tuple(token_fds), stats_fd), eos_token_ids=EOS, vocab_size=50,
            num_workers=num_workers, queue_timeout_s=queue_timeout_s,
        )  # fmt: skip
        self._config = config
        self._fds = fds
        self.attach_workers()
        bell = sockets.plan_bell(self._context, run_dir)
        self._closables: list[Any] = [router, *self.frontends, bell]
        flight_fd = segment.create("flight", flight.flight_bytes())
        flight.initialise(flight_fd, "coordinator-0")
        recorder = flight.FlightRecorder(flight_fd, 0, os.getpid(), lambda: self.now_ns)
        self.flight = flight.FlightReader(flight_fd)
        fds.append(flight_fd)
        scheduling = Scheduler(scheduler, NUM_BLOCKS, EOS, b"key", num_workers)
        rings = EngineRings(config)
        self.coordinator = Coordinator(
            config, scheduling, rings.plans, rings.tokens, router, bell,
            Telemetry(self.stats, recorder, scheduling.counters), recorder, lambda: self.now_ns, NoGrammars(),
        )  # fmt: skip
        self._router = router
        self._num_sent = self._num_taken = 0
        """Messages for the coordinator."""
        self._receive_one, self.coordinator._receive_one = self.coordinator._receive_one, self._count_one  # type: ignore[method-assign]

    def _count_one(self) -> bool:
        taken = self._receive_one()
        self._num_taken += taken
        return taken

    def _open(self, kind: int) -> "zmq.Socket[bytes]":
        return sockets.open_socket(self._context, kind)

    def attach_workers(self) -> None:
        """Ranks begin where the rings are, and know nothing."""
        segments, size, scheduler = self._config.segments, self._config.num_workers, self._config.scheduler
        plan_ring, token_ring = PlanRing(scheduler, size), TokenRing(scheduler)
        self._plans = [plan_ring.reader(segments.plan_ring, rank) for rank in range(size)]
        self._tokens = [token_ring.writer(fd) for fd in segments.token_rings]
        self._device = FakeDevice(scheduler, NUM_BLOCKS)

    def lose_workers(self) -> None:
        """All ranks die; others come, at rings that begin anew."""
        self.coordinator.halt()
        reset_rings(self._config.segments, self._config.scheduler, self._config.num_workers)
        self.attach_workers()

    def resume(self, num_blocks: int = NUM_BLOCKS) -> None:
        rings = EngineRings(self._config)
        self.coordinator.resume(num_blocks, rings.plans, rings.tokens)

    def running(self) -> set[int]:
        """Ids of the requests that own a slot."""
        return {request.request_id for request in self.coordinator._scheduler.slots.running()}

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        for closable in self._closables:
            closable.close()
        self._context.term()

    def send(self, frontend: int, *frames: bytes) -> None:
        self._num_sent += 1
        self.frontends[frontend].send_multipart(frames)

    def hear(self) -> None:
        """The coordinator's steps until it has taken all that was sent."""
        while self._num_taken < self._num_sent:
            self.coordinator.step()

    def submit(
        self, frontend: int, request_id: int, prompt: list[int], max_tokens: int = 5, *, priority: int = 0,
        grammar: Grammar | None = None, arrival_ns: int = 0, num_crashes: int = 0, **sampling: Any,
    ) -> None:  # fmt: skip
        data = np.array(prompt, np.int32).tobytes()
        params = SamplingParams(max_tokens=max_tokens, seed=request_id, **sampling)
        submit = Submit(
            request_id, data, params, priority, grammar=grammar, arrival_ns=arrival_ns, num_crashes=num_crashes
        )
        self.send(frontend, encode(submit))

    def work(self) -> bool:
        """All ranks' part of one step."""
        plans = [reader.poll() for reader in self._plans]
        if plans[0] is None:
            return False
        rows, logprobs = self._device.execute(plans[0])
        for rank in range(len(plans)):
            self.publish(rank, rows, logprobs)
        return True

    def publish(self, rank: int, rows: np.ndarray, logprobs: np.ndarray) -> None:
        """One rank's results of the plan that it polled last."""
        result = self._tokens[rank].next_slot()
        result.rows[: rows.size] = rows
        result.logprobs[: logprobs.size] = logprobs
        result.header["num_rows"], result.header["num_logprobs"] = rows.size, logprobs.size
        result.header["swap_ns"] = 500
        result.header["begin_ns"], result.header["end_ns"] = self.now_ns, self.now_ns + 1000
        self.now_ns += 2000
        self._tokens[rank].publish()
        self._plans[rank].consume()

    def execute(self) -> tuple[np.ndarray, np.ndarray]:
        """The results of the next plan, for `publish`."""
        plans = [reader.poll() for reader in self._plans]
        assert plans[0] is not None
        return self._device.execute(plans[0])

    def start(self, num_requests: int = 1) -> None:
        """Until so many requests run."""
        while self.stats["num_running"][0] < num_requests:
            self.work()
            self.coordinator.step()

    def run(self) -> None:
        """Until everything is heard and nothing moves."""
        self.hear()
        while True:
            self.coordinator.step()
            if not (self.work() or self.coordinator.is_busy):
                return

    def received(self, frontend: int) -> list[ToFrontend]:
        """All that it was sent before: what stands in front of a mark."""
        self._router.send_multipart([f"frontend-{frontend}".encode(), MARK])
        messages: list[ToFrontend] = []
        while self.frontends[frontend].poll(10_000):
            if (frame := self.frontends[frontend].recv()) == MARK:
                return messages
            messages.append(self._decoder.decode(frame))
        raise AssertionError("the frontend has never sent anything, or its socket is gone")


def outputs(messages: Sequence[ToFrontend]) -> dict[int, tuple[list[int], Finish]]:
    found: dict[int, tuple[list[int], Finish]] = {}
    for message in messages:
        if isinstance(message, Crashed):
            continue
        assert isinstance(message, Tokens)
        ids = np.frombuffer(message.request_ids, np.uint64).tolist()
        tokens = np.frombuffer(message.token_ids, np.int32).tolist()
        for request_id, token, finish in zip(ids, tokens, message.finish, strict=True):
            so_far = found.get(request_id, ([], Finish.NONE))[0]
            found[request_id] = ([*so_far, token], Finish(finish))
    return found
