"""Weights from disk or from a seed, and the cache they are used with."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from albireo.checkpoint import CheckpointError, ModelConfig, kv_bytes_per_block, read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.weight_shapes import weight_shapes
from albireo.config import SchedulerConfig, SegmentFds, WorkerConfig
from albireo.gpu_worker.attention.oracle import OracleAttention
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.cpu_backend import CpuBackend
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.loader import load_model
from albireo.gpu_worker.weights import DummyWeights, MappedWeights

EMBEDDING = "model.embed_tokens.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"


def ignore_progress(stage: str, fraction: float) -> None:
    pass


def mapped(path: Path, dtype: torch.dtype = torch.float32) -> MappedWeights:
    return MappedWeights(path, read_checkpoint(path).model, dtype, ignore_progress)


def dummy(model: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> DummyWeights:
    return DummyWeights(model, dtype, seed, ignore_progress)


def worker_config(path: Path, **changes: Any) -> WorkerConfig:
    settings: dict[str, Any] = {
        "name": "worker-0", "run_dir": "", "log_level": "info", "scheduler": SchedulerConfig(max_model_len=64),
        "segments": SegmentFds(-1, (), -1), "rank": 0, "num_workers": 1,
        "sampling_mode": "local", "collectives": "shm", "model": read_checkpoint(path, check_weights=False).model,
        "model_path": str(path), "device": "cpu", "dtype": "float32", "kv_cache_bytes": 0, "num_threads": 1,
        "load_format": "safetensors", "seed": 0,
    }  # fmt: skip
    return WorkerConfig(**(settings | changes))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("shards", ["1GB", "100KB"])
def test_every_tensor_is_read_as_stored(make_checkpoint: Callable[..., Path], shards: str) -> None:
    from safetensors.torch import load_file

    path = make_checkpoint("qwen3", max_shard_size=shards)
    stored = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    weights = mapped(path)
    for name, shape in weight_shapes(read_checkpoint(path).model).items():
        tensor = weights.get(name)
        assert tensor.shape == shape
        assert torch.equal(tensor, stored[name])


def test_weights_of_the_engine_s_dtype_are_not_copied(make_checkpoint: Callable[..., Path]) -> None:
    weights = mapped(make_checkpoint("qwen3", dtype="bfloat16"), torch.bfloat16)
    assert weights.get(EMBEDDING).data_ptr() == weights.get(EMBEDDING).data_ptr()
    assert weights.get(GATE, rows=slice(8, 16)).data_ptr() == weights.get(GATE).data_ptr() + 8 * 64 * 2


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
def test_dtypes_are_converted(make_checkpoint: Callable[..., Path], stored: Any, wanted: torch.dtype) -> None:
    from safetensors.torch import load_file

    path = make_checkpoint("qwen3", dtype=stored)
    expected = load_file(path / "model.safetensors")[GATE].to(wanted)
    assert torch.equal(mapped(path, wanted).get(GATE), expected)


def test_a_rank_can_take_its_rows_or_columns(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("qwen3")
    for weights in (mapped(path), dummy(read_checkpoint(path).model)):
        whole = weights.get(GATE)
        assert torch.equal(weights.get(GATE, rows=slice(80, 160)), whole[80:])
        assert torch.equal(weights.get(GATE, columns=slice(0, 32)), whole[:, :32])
        assert torch.equal(
            weights.get(EMBEDDING, rows=slice(0, 5), columns=slice(3, 4)), weights.get(EMBEDDING)[:5, 3:4]
        )


def test_misaligned_tensors_are_read(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = make_checkpoint("qwen3")
    data = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little") + 1
    shifted = length.to_bytes(8, "little") + data[8 : 8 + length - 1] + b" " + data[8 + length - 1 :]
    (tmp_path / "model.safetensors").write_bytes(shifted)
    shutil.copy(path / "config.json", tmp_path)
    assert torch.equal(mapped(tmp_path).get(GATE), mapped(path).get(GATE))


def test_released_weights_can_still_be_read(make_checkpoint: Callable[..., Path]) -> None:
    weights = mapped(make_checkpoint("qwen3"))
    before = weights.get(EMBEDDING)
    copy = before.clone()
    weights.release()
    assert torch.equal(before, copy)


@pytest.mark.parametrize("load_format", ["safetensors", "dummy"])
def test_progress_grows_from_nothing_to_all(make_checkpoint: Callable[..., Path], load_format: str) -> None:
    config = worker_config(make_checkpoint("llama-llama3", num_hidden_layers=40), load_format=load_format)
    reports: list[tuple[str, float]] = []
    load_model(
        config,
        shard_model(config.model, 0, 1),
        OracleAttention(),
        Alone(),
        lambda stage, fraction: reports.append((stage, fraction)),
        CpuBackend(),
    )
    fractions = [fraction for _, fraction in reports]
    assert {stage for stage, _ in reports} == {"loading weights"}
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert fractions == sorted(set(fractions))
    assert 50 < len(fractions) <= 101


def test_checkpoint_that_changed_since_it_was_checked_is_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(make_checkpoint("qwen3"), tmp_path / "copy"))
    config = worker_config(path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(config, shard_model(config.model, 0, 1), OracleAttention(), Alone(), ignore_progress, CpuBackend())
    index = {"weight_map": dict.fromkeys(weight_shapes(config.model), "gone.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing"):
        load_model(config, shard_model(config.model, 0, 1), OracleAttention(), Alone(), ignore_progress, CpuBackend())


def test_dummy_weights_depend_on_the_seed_and_the_name(make_checkpoint: Callable[..., Path]) -> None:
    model = read_checkpoint(make_checkpoint("qwen2")).model
    one, same, other = dummy(model, 1), dummy(model, 1), dummy(model, 2)
    for name, shape in weight_shapes(model).items():
        assert one.get(name).shape == shape
        assert torch.equal(one.get(name), same.get(name))
        assert torch.equal(one.get(name), other.get(name)) == name.endswith("norm.weight")
    assert not torch.equal(one.get(GATE), one.get("model.layers.0.mlp.gate_proj.weight"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kv_cache_has_as_many_blocks_as_its_bytes_hold(make_checkpoint: Callable[..., Path], dtype: Any) -> None:
    model = read_checkpoint(make_checkpoint("qwen3")).model
    block_bytes = kv_bytes_per_block(model, 16, dtype)
    kv = KVCache.allocate(model, dtype, 16, 10 * block_bytes + block_bytes - 1)
    assert kv.num_blocks == 10
    assert len(kv.layers) == model.num_layers
    for k_cache, v_cache in kv.layers:
        assert k_cache.shape == v_cache.shape == (10, model.num_kv_heads, 16, model.head_dim)
        assert k_cache.is_contiguous() and v_cache.is_contiguous()
        assert k_cache.count_nonzero() == v_cache.count_nonzero() == 0
    assert sum(k.nbytes + v.nbytes for k, v in kv.layers) == 10 * block_bytes


def test_kv_blocks_that_were_never_used_take_no_memory(make_checkpoint: Callable[..., Path]) -> None:
    model = read_checkpoint(make_checkpoint("qwen3")).model
    before = resident_bytes()
    kv = KVCache.allocate(model, "float32", 16, 2**28)
    assert resident_bytes() - before < 2**24
    kv.layers[0][0].fill_(1.0)
    assert resident_bytes() - before > 2**25
