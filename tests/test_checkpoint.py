"""Reading checkpoint folders that can be served."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from albireo.checkpoint import GenerationDefaults, ModelConfig, kv_bytes_per_block, read_checkpoint, weight_bytes
from albireo.checkpoint.weight_shapes import weight_shapes

FAMILIES = ["llama", "llama-llama3", "llama-linear", "llama-yarn", "mistral", "qwen2", "qwen2-windows", "qwen3"]

# The keys that matter of config.json files as they lie on people's disks, transformers 4 style.
LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
MISTRAL_7B_V01 = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000,
}  # fmt: skip
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
    "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip


def read(tmp_path: Path, config: dict[str, Any]) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_checkpoint(tmp_path, check_weights=False).model


def test_llama_3_config_is_read_whole(tmp_path: Path) -> None:
    model = read(tmp_path, LLAMA_32_1B)
    assert (model.num_heads, model.num_kv_heads, model.head_dim, model.num_layers) == (32, 8, 64, 16)
    assert (model.rope.rope_type, model.rope.theta, model.rope.factor) == ("llama3", 500_000.0, 32.0)
    assert (model.rope.low_freq_factor, model.rope.high_freq_factor) == (1.0, 4.0)
    assert model.rope.original_max_position_embeddings == 8192
    assert model.context_length == model.max_position_embeddings == 131_072
    assert model.eos_token_ids == (128001, 128008, 128009)
    assert model.bos_token_id == 128000
    assert model.tie_word_embeddings
    assert not (model.qkv_bias or model.o_bias or model.mlp_bias or model.qk_norm)
    assert model.sliding_windows == (None,) * 16
    assert model.dtype == "bfloat16"
    assert model.rms_norm_eps == 1e-5


def test_mistral_windows_every_layer_unless_it_says_null(tmp_path: Path) -> None:
    assert read(tmp_path, MISTRAL_7B_V01).sliding_windows == (4096,) * 32
    assert read(tmp_path, MISTRAL_7B_V01 | {"sliding_window": None}).sliding_windows == (None,) * 32


def test_absent_keys_take_the_defaults_of_the_config_class(tmp_path: Path) -> None:
    dropped = ("sliding_window", "num_key_value_heads", "max_position_embeddings", "rope_theta", "eos_token_id")
    model = read(tmp_path, {key: value for key, value in MISTRAL_7B_V01.items() if key not in dropped})
    assert model.sliding_windows == (4096,) * 32
    assert (model.num_kv_heads, model.max_position_embeddings, model.rope.theta) == (8, 131_072, 10_000.0)
    assert model.eos_token_ids == (2,)
    assert model.head_dim == 128


def test_qwen2_has_biases_on_queries_keys_and_values_only(tmp_path: Path) -> None:
    model = read(tmp_path, QWEN25_05B)
    assert (model.qkv_bias, model.o_bias, model.mlp_bias, model.qk_norm) == (True, False, False, False)
    assert model.head_dim == 64


def test_qwen_windows_bind_from_max_window_layers_on_if_in_use(tmp_path: Path) -> None:
    assert read(tmp_path, QWEN25_05B).sliding_windows == (None,) * 24
    model = read(tmp_path, QWEN25_05B | {"use_sliding_window": True})
    assert model.sliding_windows == (None,) * 21 + (32768,) * 3
    layer_types = ["sliding_attention", *["full_attention"] * 23]
    model = read(tmp_path, QWEN25_05B | {"use_sliding_window": True, "layer_types": layer_types})
    assert model.sliding_windows == (32768,) + (None,) * 23


def test_qwen3_normalises_queries_and_keys(tmp_path: Path) -> None:
    model = read(tmp_path, QWEN3_06B)
    assert model.qk_norm
    assert (model.head_dim, model.hidden_size // model.num_heads) == (128, 64)
    assert not model.qkv_bias
    assert read(tmp_path, QWEN3_06B | {"attention_bias": True}).qkv_bias


def test_yarn_stretches_the_context_whichever_length_the_config_holds(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read(tmp_path, QWEN3_06B | {"rope_scaling": yarn}).context_length == 131_072
    stretched = QWEN3_06B | {"rope_scaling": yarn, "max_position_embeddings": 131_072}
    assert read(tmp_path, stretched).context_length == 131_072
    no_factor = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32768}
    assert read(tmp_path, stretched | {"rope_scaling": no_factor}).rope.factor == 4.0


@pytest.mark.parametrize("family", FAMILIES)
def test_both_generations_of_config_give_the_same_model(
    make_checkpoint: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    path = make_checkpoint(family)
    new = json.loads((path / "config.json").read_text())
    assert "rope_parameters" in new and "dtype" in new
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(new["rope_parameters"])
    old["torch_dtype"] = new["dtype"]
    old["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    old["rope_scaling"] = None if rope["type"] == "default" else rope
    assert read(tmp_path, old) == read_checkpoint(path, check_weights=False).model


@pytest.mark.parametrize("family", FAMILIES)
def test_written_by_transformers_read_by_us(make_checkpoint: Callable[..., Path], family: str) -> None:
    from transformers import AutoConfig

    path = make_checkpoint(family)
    checkpoint = read_checkpoint(str(path))
    model, reference = checkpoint.model, AutoConfig.from_pretrained(path)
    assert checkpoint.path == str(path)
    assert model.architecture == reference.architectures[0]
    assert model.head_dim == (getattr(reference, "head_dim", None) or 16)
    assert (model.num_layers, model.vocab_size) == (reference.num_hidden_layers, reference.vocab_size)
    assert model.tie_word_embeddings == reference.tie_word_embeddings
    assert model.rope.rope_type == reference.rope_parameters["rope_type"]
    assert model.rope.theta == reference.rope_parameters["rope_theta"]
    window = getattr(reference, "sliding_window", None)
    kinds = getattr(reference, "layer_types", None) or ["sliding_attention"] * model.num_layers
    assert model.sliding_windows == tuple(window if kind == "sliding_attention" else None for kind in kinds)
    assert model.eos_token_ids == (2,)


def test_dtype_is_the_stored_one_where_the_config_is_silent(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("qwen3", dtype="float16", seed=3)
    config = json.loads((path / "config.json").read_text())
    assert read_checkpoint(path).model.dtype == "float16"
    del config["dtype"]
    (path / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(path).model.dtype == "float16"
    (path / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    assert read_checkpoint(path).model.dtype == "bfloat16"


def generation(tmp_path: Path, settings: dict[str, Any]) -> tuple[GenerationDefaults, tuple[int, ...]]:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_06B))
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    checkpoint = read_checkpoint(tmp_path, check_weights=False)
    return checkpoint.defaults, checkpoint.model.eos_token_ids


def test_generation_config_gives_sampling_defaults_and_eos_ids(tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [151645, 151643]}
    assert generation(tmp_path, settings) == (GenerationDefaults(0.6, 0.95, 20, None), (151645, 151643))
    assert generation(tmp_path, {"min_p": 0.1, "top_k": -1, "repetition_penalty": 1.05, "eos_token_id": 7}) == (
        GenerationDefaults(top_k=0, min_p=0.1, repetition_penalty=1.05),
        (7,),
    )


def test_eos_ids_fall_back_on_config_json(tmp_path: Path) -> None:
    assert generation(tmp_path, {})[1] == (151645,)
    assert generation(tmp_path, {"eos_token_id": None})[1] == (151645,)
    assert generation(tmp_path, {"eos_token_id": [5, 5, 6]})[1] == (5, 6)


def test_numbers_of_a_greedy_generation_config_are_left_overs(tmp_path: Path) -> None:
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 7}
    assert generation(tmp_path, settings) == (GenerationDefaults(), (7,))


def test_sharded_checkpoint_is_read(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("llama-llama3", max_shard_size="100KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    assert read_checkpoint(path).model == read_checkpoint(make_checkpoint("llama-llama3")).model


def test_stored_head_of_a_tied_model_and_rotary_buffers_are_ignored(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = make_checkpoint("qwen3")
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(512, 64)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    assert read_checkpoint(tmp_path).model == read_checkpoint(path).model


def test_kv_block_counts_keys_and_values_of_every_layer(tmp_path: Path) -> None:
    model = read(tmp_path, QWEN3_06B)
    assert kv_bytes_per_block(model, 16, "bfloat16") == 2 * 28 * 8 * 16 * 128 * 2
    assert kv_bytes_per_block(model, 32, "float32") == 4 * kv_bytes_per_block(model, 16, "bfloat16")


def test_weight_bytes_count_a_tied_table_twice(tmp_path: Path) -> None:
    tied, untied = read(tmp_path, QWEN3_06B), read(tmp_path, QWEN3_06B | {"tie_word_embeddings": False})
    assert weight_bytes(tied, "bfloat16") == weight_bytes(untied, "bfloat16")
    assert weight_bytes(untied, "bfloat16") == pytest.approx(0.6e9 * 2 + 151_936 * 1024 * 2, rel=0.01)
    assert "lm_head.weight" not in weight_shapes(tied)


def test_result_travels_as_json(tmp_path: Path) -> None:
    model = read(tmp_path, LLAMA_32_1B)
    assert msgspec.json.decode(msgspec.json.encode(model), type=ModelConfig) == model


def test_reading_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, albireo.checkpoint; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "safetensors", "transformers"} & set(loaded)
