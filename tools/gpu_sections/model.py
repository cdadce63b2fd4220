"""Random models in real shapes: the folder that a server starts on, with a tokenizer, and with weights if need be."""

import json
import math
import os
import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from albireo.checkpoint import ModelConfig, read_checkpoint
from albireo.checkpoint.weight_shapes import weight_shapes

EOS_ID = 0
SHARD_BYTES = 4 << 30
_TRAINED_VOCAB = 2000
_BLOCK_VALUES = 1 << 24
_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
    "dtype": "bfloat16",
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "0.6b": {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 32, "intermediate_size": 512, "vocab_size": 2048, "tie_word_embeddings": False,
    },
}  # fmt: skip


def llama_config(shape: str) -> dict[str, Any]:
    """config.json of one of SHAPES."""
    return _LLAMA | SHAPES[shape]


def write_model_folder(path: Path, shape: str) -> ModelConfig:
    """config.json and tokenizer.json: all that `--load-format dummy` needs. Returns what Albireo reads of it."""
    path.mkdir(parents=True, exist_ok=True)
    config = llama_config(shape)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(path, config["vocab_size"])
    return read_model(path)


def read_model(path: Path) -> ModelConfig:
    return read_checkpoint(str(path), check_weights=False).model


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """A byte-level BPE of a few thousand real tokens, filled up so that every id of the model can be decoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, _TRAINED_VOCAB),
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(pydoc_data.topics.topics.values()), trainer)
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    for token_id in range(len(vocabulary), vocab_size):
        vocabulary[f"Ġt{token_id}"] = token_id
    (path / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def write_weights(path: Path, model: ModelConfig) -> int:
    """Random bf16 safetensors of the folder's model, in shards as large checkpoints are; returns their bytes.

    One block of random numbers is written again and again: as fast as the disk takes it, and no two rows of a matrix
    need to differ for this.
    """
    block = _random_block()
    shards = list(_shards(weight_shapes(model)))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(names, file)
        _write_shard(path / file, {name: weight_shapes(model)[name] for name in names}, block)
    total = sum(2 * math.prod(shape) for shape in weight_shapes(model).values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (path / "model.safetensors.index.json").write_text(json.dumps(document))
    return total


def drop_page_cache(path: Path) -> None:
    """The folder's weights are read from the disk next time (not on tmpfs, which is its pages)."""
    for file in path.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Tensors' names, in groups of at most SHARD_BYTES."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if names and size + nbytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names


def _random_block() -> memoryview:
    """bf16 numbers of standard deviation 0.02, as bytes."""
    values = np.random.default_rng(0).standard_normal(_BLOCK_VALUES, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype("<u2").data.cast("B")


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], block: memoryview) -> None:
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    ones = np.full(1 << 16, 0x3F80, "<u2").data.cast("B")
    with path.open("wb", buffering=0) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            _repeat(file.fileno(), ones if "norm" in name else block, 2 * math.prod(shape))
        os.fsync(file.fileno())  # pages that are not on the disk yet cannot be dropped


def _repeat(fd: int, block: memoryview, nbytes: int) -> None:
    """`block` again and again, `nbytes` in all."""
    while nbytes:
        nbytes -= os.write(fd, block[: min(nbytes, len(block))])
