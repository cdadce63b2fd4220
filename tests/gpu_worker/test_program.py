"""Programs: kernels run in order by one team, and decode steps that are one call and the same bits."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import carray

from albireo.checkpoint import read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.config import SchedulerConfig
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.capture_memory import CapturePool, CaptureTensors, NotCapturableError
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.cpu_backend import CpuBackend
from albireo.gpu_worker.decode_program import DecodePrograms
from albireo.gpu_worker.device_state import DeviceState
from albireo.gpu_worker.kernels.launch import Kernel, capture, is_capturing
from albireo.gpu_worker.kernels.program import Program
from albireo.gpu_worker.kernels.simd import fetch_add, pointer
from albireo.gpu_worker.kernels.skinny_product import max_rows
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.step_inputs import _decode_inputs, decode_rows
from albireo.gpu_worker.weights import MappedWeights

ARGUMENTS = np.dtype([("counter", "<i8"), ("source", "<i8"), ("out", "<i8"), ("n", "<i8")])
MAX_LEN, BLOCK_SIZE = 640, 16
needs_programs = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="without AVX512-BF16 steps are made kernel by kernel"
)


def shift_and_double(arguments: Any) -> None:
    """out[i] = 2 * source[i + 1], cyclic: wrong wherever the operation before is not through."""
    a = carray(arguments, 1)[0]
    source, out = pointer(a.source, np.int64), pointer(a.out, np.int64)
    while True:
        i = fetch_add(a.counter, 1)
        if i >= a.n:
            return
        out[i] = 2 * source[(i + 1) % a.n] + 1


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_operations_run_one_after_the_other_on_any_number_of_threads(num_threads: int) -> None:
    kernel, n, counter = Kernel(shift_and_double, ARGUMENTS), 500, np.zeros(1, np.int64)
    buffers = [np.zeros(n, np.int64) for _ in range(31)]
    rng = np.random.default_rng(5)
    with capture() as calls:
        for source, out in itertools.pairwise(buffers):
            threads = num_threads if rng.random() < 0.7 else 1
            kernel((counter.ctypes.data, source.ctypes.data, out.ctypes.data, n), threads)
    assert len(calls) == 30
    assert not buffers[1].any(), "a captured call was made"
    program = Program(calls, num_threads)
    for _ in range(300):
        buffers[0][:] = expected = rng.integers(0, 1000, n)
        program()
        for _ in range(30):
            expected = 2 * np.roll(expected, -1) + 1
        assert np.array_equal(buffers[-1], expected)


def test_a_program_shows_that_it_gets_on() -> None:
    kernel, counter, heartbeat = Kernel(shift_and_double, ARGUMENTS), np.zeros(1, np.int64), np.array([40], np.int64)
    source, out = np.zeros(8, np.int64), np.zeros(8, np.int64)
    with capture() as calls:
        for _ in range(5):
            kernel((counter.ctypes.data, source.ctypes.data, out.ctypes.data, 8), 1)
    Program(calls, 2, heartbeat.ctypes.data)()
    assert heartbeat[0] == 45, "one for each kernel"


def test_a_capture_ends_also_by_an_error() -> None:
    with pytest.raises(RuntimeError, match="boom"), capture():
        assert is_capturing()
        raise RuntimeError("boom")
    assert not is_capturing()


def test_what_is_no_kernel_cannot_be_captured() -> None:
    with pytest.raises(NotCapturableError, match=r"torch\.add"), CaptureTensors(CapturePool()):
        torch.empty(3).add(1)


def test_memory_goes_back_to_the_pool_with_the_last_view() -> None:
    pool = CapturePool()
    first = pool.empty((4, 8), torch.bfloat16)
    view, address = first.view(-1)[3:], first.data_ptr()
    del first
    other = pool.empty((4, 8), torch.bfloat16)
    assert other.data_ptr() != address, "a view still needs it"
    del view
    assert pool.empty((2, 15), torch.bfloat16).data_ptr() == address
    assert address % 64 == 0 and pool.num_bytes == 128


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def load(path: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[DecoderModel, KVCache]:
    config = read_checkpoint(path).model
    weights = MappedWeights(path, config, dtype, lambda stage, fraction: None)
    attention = CpuAttention(dtype, torch.get_num_threads())
    model = DecoderModel(config, shard_model(config, 0, 1), weights, dtype, attention, Alone(), MAX_LEN, CpuBackend())
    return model, KVCache(config, 8 * MAX_LEN // BLOCK_SIZE, BLOCK_SIZE, dtype)


def decode_state(num_blocks: int) -> DeviceState:
    """Room for eight sequences, which `set_rows` makes."""
    state = DeviceState(SchedulerConfig(max_num_seqs=8, max_model_len=MAX_LEN, block_size=BLOCK_SIZE))
    blocks = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).numpy()
    state.block_table[:8] = blocks.reshape(8, -1)
    return state


def set_rows(state: DeviceState, slots: list[int], lengths: list[int], seed: int) -> None:
    """The sequences in `slots` are about to get their next token: `lengths` are there, KV of the last one is not."""
    state.rows = np.array(slots, np.int32)
    state.alive[slots] = True
    state.num_tokens[slots] = lengths
    state.last_token[slots] = np.random.default_rng(seed).integers(0, 512, len(slots))


@torch.inference_mode()
@needs_programs
@pytest.mark.parametrize("family", ["llama-llama3", "mistral", "qwen3"])
def test_a_program_gives_the_bits_of_the_plain_way(
    make_checkpoint: Callable[..., Path], two_threads: None, family: str
) -> None:
    model, kv = load(make_checkpoint(family, dtype="bfloat16"))
    state = decode_state(kv.num_blocks)
    for keys, values in kv.layers:
        keys.normal_()
        values.normal_()
    programs = DecodePrograms(model, kv, state, max_rows=256)
    for number, lengths in enumerate([[1], [17], [640], [5, 600], [16, 1, 300], [33, 640, 2, 129], [40, 41, 42, 43]]):
        slots = np.random.default_rng(number).permutation(8)[: len(lengths)].tolist()
        set_rows(state, slots, lengths, seed=number)
        assert programs.fit(len(slots))
        by_program = programs.run(state.rows).clone()
        written = [(keys.clone(), values.clone()) for keys, values in kv.layers]
        inputs = _decode_inputs(state, BLOCK_SIZE, decode_rows(state))
        hidden = model.forward(inputs.input_ids, inputs.positions, inputs.batch, kv)
        assert torch.equal(by_program, model.compute_logits(hidden))
        for before, layer in zip(written, kv.layers, strict=True):
            assert torch.equal(before[0], layer[0])
            assert torch.equal(before[1], layer[1])


@needs_programs
def test_what_no_program_fits_is_left_to_the_plain_way(make_checkpoint: Callable[..., Path], two_threads: None) -> None:
    model, kv = load(make_checkpoint("qwen3", dtype="bfloat16"))
    state = decode_state(kv.num_blocks)
    programs = DecodePrograms(model, kv, state, max_rows=3)
    assert [programs.fit(num_rows) for num_rows in (0, 1, 3, 4)] == [False, True, True, False]
    assert not DecodePrograms(model, kv, state, max_rows=1000).fit(max_rows() + 1)
    in_float32, kv = load(make_checkpoint("qwen3"), torch.float32)
    assert not DecodePrograms(in_float32, kv, state, max_rows=8).fit(1)
