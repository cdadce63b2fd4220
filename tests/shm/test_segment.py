import os
from pathlib import Path

import pytest

from albireo.config import SchedulerConfig
from albireo.shm import layout, segment, stats
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing

CONFIG = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=128)


def test_a_segment_has_no_name_in_dev_shm() -> None:
    before = set(os.listdir("/dev/shm"))
    fd = segment.create("test", 4096)
    assert set(os.listdir("/dev/shm")) == before
    os.close(fd)


def test_two_mappings_of_a_segment_see_each_other_s_writes() -> None:
    fd = segment.create("test", 4096)
    first, second = segment.Segment(fd), segment.Segment(fd)
    os.close(fd)
    first.data[100] = 7
    assert second.data[100] == 7


def test_a_segment_cannot_be_shrunk_under_a_reader() -> None:
    fd = segment.create("test", 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_more_than_the_free_memory_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(segment.SegmentError, match=r"shared memory for huge needs .* bytes and .* are available"):
        segment.create("huge", segment.available_memory_bytes() + 2**40)


def test_a_container_s_limit_bounds_the_free_memory(tmp_path: Path) -> None:
    assert segment.cgroup_room_bytes(tmp_path) == 2**63
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert segment.cgroup_room_bytes(tmp_path) == 2**63
    (tmp_path / "memory.max").write_text("1000\n")
    assert segment.cgroup_room_bytes(tmp_path) == 400


def test_a_ring_of_another_geometry_is_refused() -> None:
    ring = PlanRing(CONFIG, num_workers=2)
    fd = segment.create("plan", ring.geometry.size)
    ring.initialise(fd)
    other = PlanRing(SchedulerConfig(max_num_seqs=9, max_num_batched_tokens=64, max_model_len=128), num_workers=2)
    with pytest.raises(segment.SegmentError, match="header field"):
        other.writer(fd)
    with pytest.raises(segment.SegmentError, match="header field kind is 1, expected 2"):
        TokenRing(CONFIG).writer(fd)
    os.close(fd)


def test_stats_written_by_one_process_are_read_by_another() -> None:
    fd = segment.create("stats", stats.stats_bytes(num_workers=3))
    stats.initialise(fd, num_workers=3)
    writer, reader = stats.EngineStats(fd), stats.EngineStats(fd)
    writer.engine["num_running"] = 5
    writer.workers["step"][2] = 9
    assert reader.engine["num_running"][0] == 5
    writer.devices["busy_ns"] = [1, 2, 3]
    assert reader.workers["step"].tolist() == [0, 0, 9]
    assert reader.devices["busy_ns"].tolist() == [1, 2, 3]
    assert reader.engine["num_running"][0] == 5
    os.close(fd)


def test_cursors_of_different_writers_lie_on_different_cache_lines() -> None:
    geometry = PlanRing(CONFIG, num_workers=4).geometry
    offsets = [geometry.published_offset] + [geometry.consumed_offset + 64 * consumer for consumer in range(4)]
    assert len({offset // layout.CACHE_LINE for offset in offsets}) == 5
    assert geometry.slots_offset >= offsets[-1] + layout.CACHE_LINE


def test_a_large_ring_costs_no_memory_until_it_is_used() -> None:
    config = SchedulerConfig(max_num_seqs=256, max_num_batched_tokens=2**20, max_model_len=2**20, run_ahead=16)
    ring = PlanRing(config, num_workers=1)
    fd = segment.create("plan", ring.geometry.size)
    ring.initialise(fd)
    ring.writer(fd)
    assert ring.geometry.size > 10 * 2**20
    assert Path(f"/proc/self/fd/{fd}").stat().st_blocks * 512 < 2**20
    os.close(fd)
