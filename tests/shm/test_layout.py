import numpy as np
import pytest

from albireo.shm import layout


def test_records_have_the_sizes_that_other_processes_expect() -> None:
    sizes = {
        "SEGMENT_HEADER": 64, "CURSOR": 64, "PLAN_HEADER": 128, "CHUNK": 24, "ADMISSION": 192, "BLOCK_APPEND": 12,
        "TOKEN_HEADER": 64, "TOKEN_ROW": 16, "ENGINE_STATS": 512, "WORKER_HEARTBEAT": 64, "LOGPROB": 192,
        "REQUEST_HISTOGRAM": 192, "REQUEST_COUNTS": 2752, "DEVICE_USE": 64, "BLOCK_COPY": 8,
        "ROUTES_KEY": 64, "ROUTE_PART": 64,
    }  # fmt: skip
    assert {name: getattr(layout, name).itemsize for name in sizes} == sizes


def test_a_record_with_overlapping_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="field b at offset 4"):
        layout.record(16, a=("<i8", 0), b=("<i4", 4))


def test_a_record_with_a_misaligned_field_is_refused() -> None:
    with pytest.raises(ValueError, match="field b at offset 12"):
        layout.record(32, a=("<i4", 0), b=("<i8", 12))


def test_a_record_larger_than_its_size_is_refused() -> None:
    with pytest.raises(ValueError, match="need 16 bytes, the record has 8"):
        layout.record(8, a=("<i8", 0), b=("<i8", 8))


def test_the_magic_reads_as_the_project_s_name() -> None:
    assert np.array([layout.MAGIC], "<u8").tobytes() == b"ALBIREO\0"
