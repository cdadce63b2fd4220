"""What cannot be served is refused in one line that says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from albireo.checkpoint import CheckpointError, read_checkpoint

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "eos_token_id": 2,
}  # fmt: skip


def refused(path: Path, *parts: str, check_weights: bool = True) -> None:
    """Reading `path` fails, with one line that has all of `parts`."""
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, check_weights=check_weights)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def config_refused(tmp_path: Path, changes: dict[str, Any], *parts: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    refused(tmp_path, *parts, check_weights=False)


@pytest.fixture
def copy(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A Qwen3 checkpoint of one's own, to break."""
    return Path(shutil.copytree(make_checkpoint("qwen3"), tmp_path / "copy"))


@pytest.fixture
def sharded(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint("qwen3", max_shard_size="100KB"), tmp_path / "sharded"))


def test_no_such_folder(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent does not exist", "must be a folder")
    (tmp_path / "model.gguf").write_text("GGUF")
    refused(tmp_path / "model.gguf", "model.gguf is a file", "must be a folder")


def test_folder_without_config(tmp_path: Path) -> None:
    refused(tmp_path, "no config.json")


def test_config_that_is_no_json(tmp_path: Path) -> None:
    for text in ("", "{", '{"vocab_size": NaN}', "[1]", "[" * 100_000, '{"architectures": "x"}'):
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path, "config.json")


def test_config_of_unreasonable_length(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(" " * (8 * 1024 * 1024 + 1))
    refused(tmp_path, "longer than")


def test_unreadable_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    refused(tmp_path, "no config.json")


def test_unsupported_architecture_is_named_with_those_that_are(tmp_path: Path) -> None:
    config_refused(tmp_path, {"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel", "Qwen3ForCausalLM", "Llama")
    config_refused(tmp_path, {"architectures": None}, "none named")
    config_refused(
        tmp_path, {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.Own"}}, "OwnModel", "never run"
    )


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"hidden_act": "gelu"}, ("hidden_act 'gelu'", "silu")),
        ({"quantization_config": {"quant_method": "awq"}}, ("quantized", "awq")),
        ({"quantization_config": {}}, ("quantized",)),
        ({"hidden_size": None}, ("'hidden_size' is missing",)),
        ({"num_hidden_layers": None}, ("'num_hidden_layers' is missing",)),
        ({"vocab_size": 0}, ("vocab_size",)),
        ({"vocab_size": "512"}, ("vocab_size",)),
        ({"num_hidden_layers": 10**6}, ("num_hidden_layers",)),
        ({"num_key_value_heads": 3}, ("num_attention_heads 4", "num_key_value_heads 3")),
        ({"head_dim": None, "hidden_size": 66}, ("hidden_size 66", "num_attention_heads 4")),
        ({"head_dim": 33}, ("head_dim 33",)),
        ({"head_dim": None, "hidden_size": 8192}, ("head_dim 2048",)),
        ({"rms_norm_eps": -1.0}, ("rms_norm_eps",)),
        ({"dtype": "float8_e4m3fn"}, ("float8_e4m3fn", "bfloat16")),
        ({"eos_token_id": 512}, ("eos_token_id 512", "vocabulary of 512")),
        ({"eos_token_id": [-1]}, ("eos_token_id",)),
        ({"eos_token_id": list(range(17))}, ("17 EOS ids", "16")),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor 0.5",)),
        ({"layer_types": ["full_attention"]}, ("1 layer_types", "3 layers")),
        ({"layer_types": ["linear_attention"] * 3}, ("linear_attention",)),
        ({"layer_types": ["sliding_attention"] * 3}, ("sliding_window",)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 8, "layer_types": ["full_attention"] * 3},
         ("layer_types contradicts",)),
        ({"rope_scaling": {"rope_type": "longrope"}}, ("'longrope'", "yarn")),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("'dynamic'",)),
        ({"rope_scaling": {"type": "linear"}}, ("'linear'", "'factor'")),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ("'llama3'", "'low_freq_factor'")),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
         ("high_freq_factor",)),
        ({"rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]}}, ("mrope_section",)),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ("layer type",)),
        ({"rope_parameters": {"rope_theta": -1.0}}, ("rope_theta",)),
    ],
)  # fmt: skip
def test_config_that_we_cannot_obey(tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    config_refused(tmp_path, changes, *parts)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": 3}, {"top_p": 0}, {"top_k": "x"}, {"min_p": 2}, {"eos_token_id": 512}],
)
def test_generation_config_out_of_range(copy: Path, settings: dict[str, Any]) -> None:
    (copy / "generation_config.json").write_text(json.dumps(settings))
    refused(copy, "generation_config.json", next(iter(settings)))


def test_pickle_checkpoints_are_not_loaded(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refused(copy, "neither model.safetensors nor")
    (copy / "pytorch_model.bin").write_bytes(b"")
    refused(copy, "pytorch_model.bin", "pickle files can run code", "save_pretrained")


def test_truncated_weights(copy: Path) -> None:
    file = copy / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    refused(copy, "model.safetensors is truncated", str(len(data) - 1), str(len(data)), "download it again")
    for length in (0, 7, 8, 100):
        file.write_bytes(data[:length])
        refused(copy, "model.safetensors is truncated")


def test_weights_with_a_header_of_lies(copy: Path) -> None:
    file = copy / "model.safetensors"
    for data in (
        b"\xff" * 100,
        (200).to_bytes(8, "little") + b"x" * 100,
        b"version https://git-lfs.github.com/spec/v1",
    ):
        file.write_bytes(data)
        refused(copy, "model.safetensors is truncated or no safetensors file")
    for header in ("no json", "[]", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'):
        file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        refused(copy, "header of", "model.safetensors")
    for offsets in ([8, 4], [0, 3]):
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}})
        file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        refused(copy, "a a size that is not its shape's")


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(sharded, shard.name, "missing", "index.json")


def test_index_that_disagrees_with_its_shards(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    name = next(name for name, shard in index["weight_map"].items() if shard == second)
    moved = {"weight_map": index["weight_map"] | {name: first}}
    file.write_text(json.dumps(moved))
    refused(sharded, name, first)
    outside = {"weight_map": index["weight_map"] | {name: f"../{second}"}}
    file.write_text(json.dumps(outside))
    refused(sharded, f"../{second}", "no plain file name")
    file.write_text("{}")
    refused(sharded, "index.json", "weight_map")


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_weights_that_the_config_does_not_describe(copy: Path) -> None:
    change_config(copy, num_hidden_layers=4, layer_types=None)
    refused(copy, "lack model.layers.3.input_layernorm.weight and 10 more")
    change_config(copy, num_hidden_layers=3, attention_bias=True)
    refused(copy, "lack model.layers.0.self_attn.q_proj.bias")
    change_config(copy, attention_bias=False, intermediate_size=128)
    refused(copy, "model.layers.0.mlp.gate_proj.weight", "(160, 64)", "(128, 64)")
    change_config(copy, intermediate_size=160, tie_word_embeddings=False)
    refused(copy, "lack lm_head.weight,")
    change_config(copy, tie_word_embeddings=True, num_hidden_layers=2)
    refused(copy, "have model.layers.2.", "no place for")


def test_weights_of_a_dtype_that_cannot_be_loaded(copy: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float64)
    save_file(tensors, copy / "model.safetensors")
    refused(copy, "model.norm.weight is stored as F64", "BF16")
