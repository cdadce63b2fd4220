"""The coordinator actor over real sockets and rings, with the fake device as its worker, in one thread."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from fake_device import FakeDevice, reference

from albireo import sockets
from albireo.config import CoordinatorConfig, SchedulerConfig, SegmentFds
from albireo.coordinator.coordinator import Coordinator, RanksDifferError
from albireo.coordinator.grammars import NoGrammars
from albireo.coordinator.scheduler import Scheduler
from albireo.coordinator.telemetry import Telemetry
from albireo.messages import (
    Abort,
    Finish,
    Rejected,
    SamplingParams,
    Submit,
    ToFrontend,
    Tokens,
    encode,
    frontend_decoder,
)
from albireo.shm import flight, layout, segment, stats
from albireo.shm.flight import Part
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing

SCHEDULER = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=64, block_size=4)
EOS = (3, 4)
NUM_BLOCKS = 20


class Harness:
    """A coordinator, its workers and two frontends' sockets."""

    def __init__(self, run_dir: str, num_workers: int = 1) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = self._open(zmq.ROUTER)
        router.bind(f"ipc://{run_dir}/router.sock")
        self.frontends = []
        for index in range(2):
            dealer = self._open(zmq.DEALER)
            dealer.setsockopt(zmq.IDENTITY, f"frontend-{index}".encode())
            dealer.connect(f"ipc://{run_dir}/router.sock")
            self.frontends.append(dealer)
        plan_ring, token_ring = PlanRing(SCHEDULER, num_workers), TokenRing(SCHEDULER)
        token_sizes = [token_ring.geometry.size] * num_workers
        fds = [segment.create("x", size) for size in (plan_ring.geometry.size, 4096, *token_sizes)]
        plan_fd, stats_fd, *token_fds = fds
        plan_ring.initialise(plan_fd)
        for fd in token_fds:
            token_ring.initialise(fd)
        stats.initialise(stats_fd, num_workers)
        self.stats = stats.EngineStats(stats_fd).engine
        self._plans = [plan_ring.reader(plan_fd, rank) for rank in range(num_workers)]
        self._tokens = [token_ring.writer(fd) for fd in token_fds]
        self._device = FakeDevice(SCHEDULER, NUM_BLOCKS)
        self._decoder = frontend_decoder()
        self.now_ns = 1
        config = CoordinatorConfig(
            name="coordinator-0", run_dir=run_dir, log_level="info", scheduler=SCHEDULER,
            segments=SegmentFds(plan_fd, tuple(token_fds), stats_fd), eos_token_ids=EOS, vocab_size=50,
            num_workers=num_workers,
        )  # fmt: skip
        bell = sockets.plan_bell(self._context, run_dir)
        self._closables: list[Any] = [router, *self.frontends, bell]
        flight_fd = segment.create("flight", flight.flight_bytes())
        flight.initialise(flight_fd, "coordinator-0")
        recorder = flight.FlightRecorder(flight_fd, 0, os.getpid(), lambda: self.now_ns)
        self.flight = flight.FlightReader(flight_fd)
        fds.append(flight_fd)
        self.coordinator = Coordinator(
            config, Scheduler(SCHEDULER, NUM_BLOCKS, EOS, b"key", num_workers), plan_ring.writer(plan_fd),
            [token_ring.reader(fd) for fd in token_fds], router, bell, Telemetry(self.stats, recorder), recorder,
            lambda: self.now_ns, NoGrammars(),
        )  # fmt: skip
        for fd in fds:
            os.close(fd)

    def _open(self, kind: int) -> "zmq.Socket[bytes]":
        return sockets.open_socket(self._context, kind)

    def close(self) -> None:
        for closable in self._closables:
            closable.close()
        self._context.term()

    def send(self, frontend: int, data: bytes) -> None:
        self.frontends[frontend].send(data)

    def submit(self, frontend: int, request_id: int, prompt: list[int], max_tokens: int = 5, **sampling: Any) -> None:
        data = np.array(prompt, np.int32).tobytes()
        params = SamplingParams(max_tokens=max_tokens, seed=request_id, **sampling)
        self.send(frontend, encode(Submit(request_id, data, params)))

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
        result.header["begin_ns"], result.header["end_ns"] = self.now_ns, self.now_ns + 1000
        self.now_ns += 2000
        self._tokens[rank].publish()
        self._plans[rank].consume()

    def execute(self) -> tuple[np.ndarray, np.ndarray]:
        """The results of the next plan, for `publish`."""
        plans = [reader.poll() for reader in self._plans]
        assert plans[0] is not None
        return self._device.execute(plans[0])

    def start(self) -> None:
        """Until a request runs."""
        while not self.stats["num_running"][0]:
            self.coordinator.step()

    def run(self) -> None:
        """Until nothing moves: a message in a socket counts as moving."""
        idle = 0
        while idle < 3:
            self.coordinator.step()
            idle = 0 if self.work() or self.coordinator.is_busy else idle + 1
            self.frontends[0].poll(5)

    def received(self, frontend: int) -> list[ToFrontend]:
        messages = []
        while self.frontends[frontend].poll(50):
            messages.append(self._decoder.decode(self.frontends[frontend].recv()))
        return messages


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(str(tmp_path))
    yield harness
    harness.close()


def outputs(messages: Sequence[ToFrontend]) -> dict[int, tuple[list[int], Finish]]:
    found: dict[int, tuple[list[int], Finish]] = {}
    for message in messages:
        assert isinstance(message, Tokens)
        ids = np.frombuffer(message.request_ids, np.uint64).tolist()
        tokens = np.frombuffer(message.token_ids, np.int32).tolist()
        for request_id, token, finish in zip(ids, tokens, message.finish, strict=True):
            so_far = found.get(request_id, ([], Finish.NONE))[0]
            found[request_id] = ([*so_far, token], Finish(finish))
    return found


def test_each_frontend_hears_of_its_own_requests_one_message_a_step(harness: Harness) -> None:
    for request_id in range(3):
        harness.submit(0, request_id, [1, 2, 5 + request_id])
    harness.submit(1, 0, [9, 9, 9, 9, 9])
    harness.run()
    first, second = harness.received(0), harness.received(1)
    expected = {request_id: reference([1, 2, 5 + request_id], request_id, 8, EOS, ()) for request_id in range(3)}
    assert outputs(first) == expected
    assert outputs(second) == {0: reference([9] * 5, 0, 10, EOS, ())}
    steps = [message.step for message in first if isinstance(message, Tokens)]
    assert len(steps) == len(set(steps))
    admitted = [entry for message in first if isinstance(message, Tokens) for entry in message.admitted]
    assert [entry.request_id for entry in admitted] == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "sampling", "field", "text"),
    [
        ([], 5, {}, "prompt", "the prompt has 0 tokens; between 1 and 63 are possible"),
        ([1] * 64, 5, {}, "prompt", "the prompt has 64 tokens"),
        ([50], 5, {}, "prompt", "between 0 and 49"),
        ([-1], 5, {}, "prompt", "between 0 and 49"),
        ([1], 5, {"stop_token_ids": tuple(range(15))}, "stop_token_ids", "at most 14"),
        ([1], 5, {"bad_words": ((1,) * 16,) * 61}, "bad_words", "may be 1024 in all"),
    ],
)
def test_a_request_that_slipped_through_the_frontend_is_rejected_and_disturbs_nobody(
    harness: Harness, prompt: list[int], max_tokens: int, sampling: dict[str, Any], field: str, text: str
) -> None:
    harness.submit(0, 1, [1, 2, 3])
    harness.submit(1, 2, prompt, max_tokens, **sampling)
    harness.run()
    (rejected,) = harness.received(1)
    assert isinstance(rejected, Rejected)
    assert (rejected.request_id, rejected.field) == (2, field)
    assert text in rejected.message
    assert outputs(harness.received(0)) == {1: reference([1, 2, 3], 1, 8, EOS, ())}


def test_garbage_on_the_socket_is_dropped_and_the_rest_goes_on(harness: Harness) -> None:
    for data in (b"", b"\xff\xff", b"\x81\xa4type\xa3Foo", encode(Abort([77]))):
        harness.send(0, data)
    harness.frontends[0].send_multipart([b"two", b"frames"])
    stop = encode(Submit(5, b"\1\0\0\0", SamplingParams(max_tokens=1, stop_token_ids=(2**31,))))
    harness.send(0, stop)
    harness.submit(0, 1, [1, 2, 3])
    harness.run()
    assert outputs(harness.received(0)) == {1: reference([1, 2, 3], 1, 8, EOS, ())}


def test_an_id_that_is_in_use_is_rejected(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 3], max_tokens=60, ignore_eos=True)
    harness.submit(0, 1, [1, 2, 3])
    harness.start()
    for _ in range(1000):  # the two messages may arrive apart
        if harness.frontends[0].poll(10):
            break
        harness.coordinator.step()
    (message,) = [m for m in harness.received(0) if isinstance(m, Rejected)]
    assert message.field == "request_id"


def test_an_abort_is_answered_with_nothing_and_frees_everything(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 3], max_tokens=60, ignore_eos=True)
    while not harness.stats["num_blocks_used"][0]:
        harness.coordinator.step()
    harness.send(0, encode(Abort([1])))
    harness.run()
    assert not [finish for _, finish in outputs(harness.received(0)).values() if finish]
    assert harness.stats["num_blocks_used"][0] == 0
    assert harness.stats["num_running"][0] == 0
    assert harness.stats["finished_abort"][0] == 1


def test_the_counters_tell_what_was_done(harness: Harness) -> None:
    for request_id in range(4):
        harness.submit(0, request_id, [7] * 9, max_tokens=6, ignore_eos=True)
    harness.run()
    stats = harness.stats[0]
    assert stats["prompt_tokens"] == 36
    assert stats["generation_tokens"] == 24
    assert stats["finished_length"] == 4
    assert stats["prefix_cache_hits"] == 3 * 8
    assert stats["num_steps"] == stats["num_confirmed_steps"] >= 6
    assert stats["step_device_ns"] == 1000 * stats["num_confirmed_steps"]
    assert stats["num_blocks"] == NUM_BLOCKS
    assert stats["iteration_tokens"]["buckets"].sum() == stats["num_steps"]
    assert stats["iteration_tokens"]["sum"] == 36 - 3 * 8 + 4 * 5
    assert stats["run_ahead_depth"] == SCHEDULER.run_ahead


def test_the_flight_record_tells_a_step_from_request_to_answer(harness: Harness) -> None:
    harness.submit(0, 7, [1, 2, 3], max_tokens=3, ignore_eos=True)
    harness.start()
    harness.run()
    records = harness.flight.read().records
    told = [(Part(record["part"]), int(record["step"])) for record in records]
    assert told[:9] == [
        (Part.RECEIVE, 1), (Part.SCHEDULE, 1), (Part.WRITE_PLAN, 1), (Part.SCHEDULE, 2), (Part.WRITE_PLAN, 2),
        (Part.SCHEDULE, 3), (Part.WRITE_PLAN, 3), (Part.DOORBELL, 3), (Part.IDLE, 3),
    ]  # fmt: skip
    assert [step for part, step in told if part is Part.CONFIRM] == [1, 2, 3]
    assert told[-1] == (Part.SEND, 3)


def test_a_gap_is_exposed_only_while_there_is_work(harness: Harness) -> None:
    for request_id in (7, 8):
        harness.submit(0, request_id, [1, 2, 3], max_tokens=3, ignore_eos=True)
        harness.start()
        harness.run()
        harness.now_ns += 10**9  # nothing to do
    records = harness.flight.read().records
    exposed = records[records["part"] == Part.EXPOSED]
    # the harness's device pauses for 1000 ns behind each step; steps 1 and 4 come out of idleness
    assert exposed["step"].tolist() == [2, 3, 5, 6]
    assert (exposed["end_ns"] - exposed["begin_ns"]).tolist() == [1000] * 4
    assert harness.stats["step_exposed_ns"][0] == 4000


@pytest.fixture
def two_ranks(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(str(tmp_path), num_workers=2)
    yield harness
    harness.close()


def test_a_step_is_confirmed_when_the_last_rank_has_published_it(two_ranks: Harness) -> None:
    two_ranks.submit(0, 7, [1, 2, 3])
    two_ranks.start()
    results = two_ranks.execute()
    two_ranks.publish(1, *results)
    two_ranks.coordinator.step()
    assert two_ranks.received(0) == []
    two_ranks.publish(0, *results)
    two_ranks.coordinator.step()
    assert len(outputs(two_ranks.received(0))[7][0]) == 1
    two_ranks.run()
    assert two_ranks.stats["num_running"][0] == 0


def test_ranks_that_sampled_different_tokens_end_the_engine(two_ranks: Harness) -> None:
    two_ranks.submit(0, 7, [1, 2, 3])
    two_ranks.start()
    rows, logprobs = two_ranks.execute()
    two_ranks.publish(0, rows, logprobs)
    rows["token"] += 1
    two_ranks.publish(1, rows, logprobs)
    with pytest.raises(RanksDifferError, match="worker-0 and worker-1 sampled different tokens in step 1"):
        two_ranks.coordinator.step()


def test_logprobs_reach_the_requests_that_asked(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], logprobs=2)
    harness.submit(0, 2, [1, 2, 6])
    harness.submit(1, 1, [9] * 40, prompt_logprobs=0)
    harness.run()
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    tokens = []
    for frontend in (0, 1):
        messages = [message for message in harness.received(frontend) if isinstance(message, Tokens)]
        tokens.append(outputs(messages))
        for message in messages:
            ids = np.frombuffer(message.logprob_request_ids, np.uint64).tolist()
            for request_id, record in zip(ids, np.frombuffer(message.logprobs, layout.LOGPROB), strict=True):
                found.setdefault((frontend, request_id), []).append((int(record["position"]), int(record["token"])))
    assert found == {
        (0, 1): list(enumerate(tokens[0][1][0], 3)),
        (1, 1): [(position, 9) for position in range(1, 40)],
    }
