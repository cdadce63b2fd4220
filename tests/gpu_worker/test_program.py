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
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.capture_memory import CapturePool, CaptureTensors, NotCapturableError
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.decode_program import DecodePrograms
from albireo.gpu_worker.kernels.launch import Kernel, capture, is_capturing
from albireo.gpu_worker.kernels.program import Program
from albireo.gpu_worker.kernels.simd import fetch_add, pointer
from albireo.gpu_worker.kernels.skinny_product import MAX_ROWS
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.step_inputs import StepInputs
from albireo.gpu_worker.weights import MappedWeights

ARGUMENTS = np.dtype([("counter", "<i8"), ("source", "<i8"), ("out", "<i8"), ("n", "<i8")])
MAX_LEN, BLOCK_SIZE = 640, 16


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
    assert pool.empty((2, 16), torch.bfloat16).data_ptr() == address
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
    model = DecoderModel(config, shard_model(config, 0, 1), weights, dtype, attention, Alone(), MAX_LEN)
    return model, KVCache(config, 8 * MAX_LEN // BLOCK_SIZE, BLOCK_SIZE, dtype)


def decode_step(block_table: torch.Tensor, slots: list[int], lengths: list[int], seed: int) -> StepInputs:
    """Inputs of a step that decodes the sequences in `slots`, `lengths` tokens long with the new one."""
    n = len(slots)
    slot_ids, seq_lens = torch.tensor(slots, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32)
    positions = seq_lens.long() - 1
    blocks = block_table[slot_ids.long(), positions // BLOCK_SIZE].long()
    return StepInputs(
        input_ids=torch.randint(512, (n,), generator=torch.Generator().manual_seed(seed)),
        positions=positions,
        batch=AttentionBatch(
            block_table=block_table, slots=slot_ids, query_start=torch.arange(n + 1, dtype=torch.int32),
            seq_lens=seq_lens, slot_mapping=blocks * BLOCK_SIZE + positions % BLOCK_SIZE, num_decodes=n,
            max_query_len=1, max_seq_len=max(lengths),
        ),
        sampled_tokens=np.arange(n), sampled_slots=slot_ids.numpy(), sampled_positions=positions.numpy() + 1,
        live=np.ones(n, np.bool_), result_slots=slot_ids.numpy(),
    )  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama-llama3", "mistral", "qwen3"])
def test_a_program_gives_the_bits_of_the_plain_way(
    make_checkpoint: Callable[..., Path], two_threads: None, family: str
) -> None:
    model, kv = load(make_checkpoint(family, dtype="bfloat16"))
    block_table = torch.randperm(kv.num_blocks).view(8, -1).to(torch.int32)
    for keys, values in kv.layers:
        keys.normal_()
        values.normal_()
    programs = DecodePrograms(model, kv, block_table, max_rows=256)
    for number, lengths in enumerate([[1], [17], [640], [5, 600], [16, 1, 300], [33, 640, 2, 129], [40, 41, 42, 43]]):
        slots = np.random.default_rng(number).permutation(8)[: len(lengths)].tolist()
        inputs = decode_step(block_table, slots, lengths, seed=number)
        logits = programs.run(inputs)
        assert logits is not None
        by_program, written = logits.clone(), [layer[0].clone() for layer in kv.layers]
        hidden = model.forward(inputs.input_ids, inputs.positions, inputs.batch, kv)
        assert torch.equal(by_program, model.compute_logits(hidden))
        assert all(torch.equal(before, layer[0]) for before, layer in zip(written, kv.layers, strict=True))


@torch.inference_mode()
def test_what_no_program_fits_is_left_to_the_plain_way(make_checkpoint: Callable[..., Path], two_threads: None) -> None:
    model, kv = load(make_checkpoint("qwen3", dtype="bfloat16"))
    block_table = torch.zeros(8, MAX_LEN // BLOCK_SIZE, dtype=torch.int32)
    programs = DecodePrograms(model, kv, block_table, max_rows=256)
    assert programs.run(decode_step(block_table, list(range(MAX_ROWS + 1)), [9] * (MAX_ROWS + 1), seed=0)) is None
    in_float32, kv = load(make_checkpoint("qwen3"), torch.float32)
    assert not in_float32.is_capturable
    programs = DecodePrograms(in_float32, kv, block_table, max_rows=256)
    assert programs.run(decode_step(block_table, [0], [9], seed=0)) is None
