"""The rings between real processes, doorbells lost on purpose."""

import os
import subprocess
import sys
import tempfile
import time

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo import sockets
from albireo.config import SchedulerConfig
from albireo.shm import segment
from albireo.shm.plan_ring import PlanReader, PlanRing, PlanWriter
from albireo.shm.segment import SegmentError

CONFIG = SchedulerConfig(max_num_seqs=32, max_num_batched_tokens=64, max_model_len=256, run_ahead=2)
NUM_CONSUMERS = 4

CONSUMER = """
import sys, zmq
from albireo import sockets
from albireo.config import SchedulerConfig
from albireo.shm.plan_ring import PlanRing
fd, consumer, num_plans, recheck_ms, run_dir = *map(int, sys.argv[1:5]), sys.argv[5]
config = SchedulerConfig(max_num_seqs=32, max_num_batched_tokens=64, max_model_len=256, run_ahead=2)
reader = PlanRing(config, 4).reader(fd, consumer)
bell = sockets.plan_bell_listener(zmq.Context(), run_dir)
seen, digest = 0, 0
while seen < num_plans:
    sockets.drain(bell)
    while (plan := reader.poll()) is not None:
        seen += 1
        header = plan.header[0]
        n = int(header["num_rows"])
        assert header["sequence"] == seen, (header["sequence"], seen)
        assert (plan.rows[:n] == seen).all() and (plan.chunk_tokens == seen).all(), "torn plan"
        digest = (digest * 31 + n) % 1_000_003
        reader.consume()
    bell.poll(recheck_ms)
print(digest)
"""


def make_ring(num_consumers: int = NUM_CONSUMERS) -> tuple[PlanRing, int]:
    ring = PlanRing(CONFIG, num_consumers)
    fd = segment.create("plan", ring.geometry.size)
    ring.initialise(fd)
    return ring, fd


def fill(writer: PlanWriter, value: int, num_rows: int) -> None:
    plan = writer.next_slot()
    plan.header["num_rows"] = num_rows
    plan.rows[:num_rows] = value
    plan.chunk_tokens[:] = value


@settings(max_examples=4, deadline=None)
@given(
    row_counts=st.lists(st.integers(0, 32), min_size=50, max_size=300),
    lost=st.sets(st.integers(0, 299)),
    lose_all=st.booleans(),
)
def test_four_processes_read_every_plan_whole_and_in_order_with_doorbells_lost(
    row_counts: list[int], lost: set[int], lose_all: bool
) -> None:
    ring, fd = make_ring()
    writer = ring.writer(fd)
    with tempfile.TemporaryDirectory() as run_dir, zmq.Context() as context:
        bell = sockets.plan_bell(context, run_dir)
        arguments = [str(len(row_counts)), "5", run_dir]
        consumers = [
            subprocess.Popen(
                [sys.executable, "-c", CONSUMER, str(fd), str(consumer), *arguments],
                pass_fds=[fd], stdout=subprocess.PIPE, text=True,
            )
            for consumer in range(NUM_CONSUMERS)
        ]  # fmt: skip
        digest = 0
        for index, num_rows in enumerate(row_counts):
            while not writer.has_room():
                assert all(consumer.poll() in (None, 0) for consumer in consumers)
                os.sched_yield()
            fill(writer, index + 1, num_rows)
            writer.publish()
            if not lose_all and index not in lost:
                bell.ring()
            digest = (digest * 31 + num_rows) % 1_000_003
        outputs = [consumer.communicate(timeout=30)[0].strip() for consumer in consumers]
        bell.close()
    os.close(fd)
    assert outputs == [str(digest)] * NUM_CONSUMERS


def test_a_slot_is_not_given_out_again_before_every_consumer_is_done_with_it() -> None:
    ring, fd = make_ring(2)
    writer, readers = ring.writer(fd), [ring.reader(fd, consumer) for consumer in range(2)]
    for value in range(1, ring.geometry.num_slots + 1):
        fill(writer, value, 1)
        writer.publish()
    assert not writer.has_room()
    with pytest.raises(SegmentError, match="the ring is full"):
        writer.next_slot()
    read_one(readers[0])
    assert not writer.has_room(), "the slower consumer still holds the slot"
    readers[1].poll()
    assert not writer.has_room(), "reading a plan does not give its slot back; the device's consumption does"
    readers[1].consume()
    assert writer.has_room()
    os.close(fd)


def read_one(reader: PlanReader) -> None:
    assert reader.poll() is not None
    reader.consume()


def test_a_reader_that_attaches_again_goes_on_where_it_had_consumed() -> None:
    ring, fd = make_ring(1)
    writer, reader = ring.writer(fd), ring.reader(fd, 0)
    for value in (1, 2):
        fill(writer, value, 1)
        writer.publish()
    read_one(reader)
    plan = ring.reader(fd, 0).poll()
    assert plan is not None
    assert plan.header["sequence"][0] == 2
    os.close(fd)


def test_a_slot_with_a_foreign_sequence_number_is_an_error_and_not_a_plan() -> None:
    ring, fd = make_ring(1)
    writer, reader = ring.writer(fd), ring.reader(fd, 0)
    fill(writer, 1, 1)
    slot = writer.next_slot()
    writer.publish()
    slot.header["sequence"] = 77
    with pytest.raises(SegmentError, match="holds sequence 77, expected 1"):
        reader.poll()
    os.close(fd)


@pytest.mark.parametrize("gap_s", [0.0, 5e-5, 2e-4, 5e-4])
@pytest.mark.parametrize("kind", ["plan", "token"])
def test_no_ring_is_lost_while_none_is_pending(kind: str, gap_s: float) -> None:
    with tempfile.TemporaryDirectory() as run_dir, zmq.Context() as context:
        if kind == "plan":
            bell, listener = sockets.plan_bell(context, run_dir), sockets.plan_bell_listener(context, run_dir)
            time.sleep(0.2)  # a subscription takes a moment; plans wait in the ring meanwhile
        else:
            listener, bell = sockets.token_bell_listener(context, run_dir), sockets.token_bell(context, run_dir)
        heard = 0
        for count in range(1, 101):
            bell.ring()
            heard += bool(listener.poll(20_000))
            sockets.drain(listener)
            end = time.perf_counter() + gap_s
            while time.perf_counter() < end:
                pass
            if heard < count:
                break
        listener.close()
        bell.close()
    assert heard == 100


def test_rings_while_one_is_pending_never_block() -> None:
    with tempfile.TemporaryDirectory() as run_dir, zmq.Context() as context:
        listener, bell = sockets.token_bell_listener(context, run_dir), sockets.token_bell(context, run_dir)
        for _ in range(10_000):
            bell.ring()
        assert listener.poll(20_000)
        listener.close()
        bell.close()
