"""The vectors that kernels are written in, each operation against numpy."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numba import carray

from albireo.gpu_worker.kernels import launch
from albireo.gpu_worker.kernels.bf16_pairs import round_to_bf16, store_pairs
from albireo.gpu_worker.kernels.launch import Kernel
from albireo.gpu_worker.kernels.simd import (
    exp2,
    fetch_add,
    load,
    max_lanes,
    maximum,
    pointer,
    splat,
    store,
    store_halves,
    sum_each,
    sum_lanes,
)

Floats = npt.NDArray[np.float32]

ARGUMENTS = np.dtype([("x", "<i8"), ("y", "<i8"), ("out", "<i8"), ("n", "<i8"), ("counter", "<i8")])


def run(kernel: Callable[[Any], None], x: Floats, out: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
    y = x if y is None else y
    Kernel(kernel, ARGUMENTS)((x.ctypes.data, y.ctypes.data, out.ctypes.data, x.size, 0), num_threads=1)


def powers(arguments: Any) -> None:
    a = carray(arguments, 1)[0]
    x, out = pointer(a.x, np.float32), pointer(a.out, np.float32)
    for i in range(0, a.n, 16):
        store(out, i, exp2(load(x, i)))


def test_exp2_is_accurate_and_ends_in_zero() -> None:
    x = np.concatenate([np.linspace(-130, 0, 16 * 4000 - 4), [-1e30, -127.0, -1.0, 0.0]]).astype(np.float32)
    out = np.empty_like(x)
    run(powers, x, out)
    expected = np.exp2(x.astype(np.float64))
    normal = x > -126.0
    assert np.abs(out[normal] / expected[normal] - 1).max() < 3e-7
    assert not out[x <= -127.0].any()
    assert (out[x == 0.0] == 1.0).all()


def narrow(arguments: Any) -> None:
    a = carray(arguments, 1)[0]
    x, out = pointer(a.x, np.float32), pointer(a.out, np.uint16)
    for i in range(0, a.n, 16):
        store(out, i, load(x, i))


def test_bf16_is_rounded_as_torch_rounds_and_widened_exactly() -> None:
    random = np.random.default_rng(0).integers(0, 2**32, 16 * 4096, dtype=np.uint32).view(np.float32)
    x = np.where(np.isfinite(random), random, np.float32(0))
    x[:4] = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x80000001], np.uint32).view(np.float32)
    out = np.empty(x.size, np.uint16)
    run(narrow, x, out)
    expected = torch.from_numpy(x).bfloat16()
    assert np.array_equal(out, expected.view(torch.uint16).numpy())

    widened = np.empty_like(x)
    run(widen, x, widened, out)
    assert np.array_equal(widened, expected.float().numpy())


def widen(arguments: Any) -> None:
    a = carray(arguments, 1)[0]
    y, out = pointer(a.y, np.uint16), pointer(a.out, np.float32)
    for i in range(0, a.n, 16):
        store(out, i, load(y, i))


def pack(arguments: Any) -> None:
    a = carray(arguments, 1)[0]
    x, y, out = pointer(a.x, np.float32), pointer(a.y, np.float32), pointer(a.out, np.uint32)
    for i in range(0, a.n, 16):
        store_pairs(out, i, round_to_bf16(load(x, i)), round_to_bf16(load(y, i)))


def test_pairs_hold_the_rounded_numbers_low_and_high() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 160)).astype(np.float32)
    out = np.empty(x.size, np.uint32)
    run(pack, x, out, y)
    pairs = torch.from_numpy(np.stack([x, y], 1)).bfloat16()
    assert np.array_equal(out, pairs.view(torch.uint16).numpy().astype(np.uint32) @ np.array([1, 1 << 16], np.uint32))


def reductions(arguments: Any) -> None:
    a = carray(arguments, 1)[0]
    x, out = pointer(a.x, np.float32), pointer(a.out, np.float32)
    v = load(x, 0)
    largest = splat(np.float32(-1e30))
    for i in range(0, a.n, 16):
        out[i] = sum_lanes(load(x, i))
        largest = maximum(load(x, i), largest)
    out[1] = max_lanes(largest)
    v0, v1, v2, v3 = v, load(x, 16), load(x, 32), load(x, 48)
    v4, v5, v6, v7 = load(x, 64), load(x, 80), load(x, 96), load(x, 112)
    v8, v9, v10, v11 = load(x, 128), load(x, 144), load(x, 160), load(x, 176)
    v12, v13, v14, v15 = load(x, 192), load(x, 208), load(x, 224), load(x, 240)
    sums = sum_each(v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15)
    store_halves(out, a.n, a.n + 32, sums)


def test_lanes_are_summed_compared_and_transposed() -> None:
    x = np.random.default_rng(2).normal(size=256).astype(np.float32)
    out = np.zeros(256 + 48, np.float32)
    run(reductions, x, out)
    sums = x.reshape(16, 16).sum(1)
    np.testing.assert_allclose(out[:256:16], sums, atol=2e-6)
    assert out[1] == x.max()
    np.testing.assert_allclose(out[256:264], sums[:8], atol=2e-6)
    np.testing.assert_allclose(out[288:296], sums[8:], atol=2e-6)


def count(arguments: Any) -> None:
    a = carray(arguments, 1)[0]
    out = pointer(a.out, np.int64)
    while True:
        i = fetch_add(a.counter, 1)
        if i >= a.n:
            return
        out[i] = i


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_share_out_the_work(num_threads: int) -> None:
    out, counter = np.zeros(100_000, np.int64), np.zeros(1, np.int64)
    Kernel(count, ARGUMENTS)((0, 0, out.ctypes.data, out.size, counter.ctypes.data), num_threads)
    assert np.array_equal(out, np.arange(out.size))
    assert counter[0] == out.size + num_threads


def test_a_runtime_without_teams_still_does_all_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "openmp_team", lambda: None)
    test_threads_share_out_the_work(1)


def test_a_kernel_without_a_place_to_be_cached_is_compiled_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    source = "def fill(arguments):\n    a = carray(arguments, 1)[0]\n    pointer(a.out, np.int64)[0] = a.n\n"
    scope: dict[str, Any] = {"carray": carray, "pointer": pointer, "np": np}
    exec(compile(source, "nowhere", "exec"), scope)
    out = np.zeros(1, np.int64)
    Kernel(scope["fill"], ARGUMENTS)((0, 0, out.ctypes.data, 77, 0), num_threads=1)
    assert out[0] == 77
    assert "compiled at every start" in caplog.text


@pytest.mark.slow
def test_attention_agrees_with_the_oracle_on_a_cpu_without_avx512() -> None:
    test = "tests/gpu_worker/test_attention.py::test_agrees_with_the_oracle"
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+bmi,+bmi2"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
