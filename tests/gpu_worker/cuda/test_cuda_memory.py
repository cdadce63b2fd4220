"""How much KV cache a GPU gets, and the error that says why it is too little."""

import pytest

from albireo.gpu_worker.cuda.memory import (
    GIB,
    GRAPH_RESERVE_BYTES,
    DeviceMemory,
    OutOfDeviceMemoryError,
    check_weights_fit,
    kv_cache_bytes,
)


def memory(free: int = 50, weights: int = 16, peak: int = 20, reserved: int = 21) -> DeviceMemory:
    return DeviceMemory(*(GIB * size for size in (80, free, weights, peak, reserved)))


def test_the_cache_gets_the_asked_share_less_weights_the_largest_step_and_others() -> None:
    # 80 - 50 free - 21 of torch: 9 GiB are other programs'
    assert kv_cache_bytes(memory(), 0.9, GIB) == 72 * GIB - 9 * GIB - 20 * GIB - GRAPH_RESERVE_BYTES


def test_the_cache_never_gets_more_than_is_free() -> None:
    crowded = memory(free=50, peak=2, weights=1, reserved=30)
    assert kv_cache_bytes(crowded, 1.0, GIB) == 50 * GIB - GRAPH_RESERVE_BYTES


def test_a_cache_that_holds_no_longest_sequence_is_refused_with_the_numbers() -> None:
    with pytest.raises(OutOfDeviceMemoryError) as error:
        kv_cache_bytes(memory(), 0.4, 5 * GIB)
    text = str(error.value)
    for part in ("80.0 GiB", "--gpu-memory-utilization 0.4", "32.0", "weights take 16.0", "largest step 4.0",
                 "other programs 9.0", "2.50 GiB are left", "needs 5.00", "lower --max-model-len"):  # fmt: skip
        assert part in text, part
    assert "\n" not in text


def test_weights_that_do_not_fit_are_refused_before_they_are_read() -> None:
    check_weights_fit(weights=70 * GIB, free=75 * GIB, total=80 * GIB)
    with pytest.raises(OutOfDeviceMemoryError, match=r"weights need 78\.0 GiB, and 75\.0 of .* 80\.0 GiB"):
        check_weights_fit(weights=78 * GIB, free=75 * GIB, total=80 * GIB)
