"""Small random-weight checkpoints, written by transformers itself, for tests of the loader, the model and the server.

The weights are larger than a fresh model's, so that logits differ by whole units and a wrong window, rope or bias
changes the greedy token; norm weights and biases are random too, since ones and zeros hide mistakes.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

Family = Literal["llama", "llama-llama3", "llama-linear", "llama-yarn", "mistral", "qwen2", "qwen2-windows", "qwen3"]

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
EOS_ID: Final = 2
VOCAB_SIZE: Final = 512
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": EOS_ID,
    "pad_token_id": 3,
}
_LLAMA3_ROPE: Final = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE: Final = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
}
_LINEAR_ROPE: Final = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
# head_dim 32 is not hidden_size / heads; Qwen2's config class has no head_dim.
_FAMILIES: Final[dict[Family, tuple[type[PreTrainedModel], Any, dict[str, Any]]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-llama3": (LlamaForCausalLM, LlamaConfig, {"head_dim": 32, "rope_parameters": _LLAMA3_ROPE}),
    "llama-linear": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _LINEAR_ROPE}),
    "llama-yarn": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _YARN_ROPE, "tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"head_dim": 32, "sliding_window": 24}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-windows": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
}
FAMILIES: Final = tuple(_FAMILIES)


def write_checkpoint(
    path: Path,
    family: Family,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    max_shard_size: str = "1GB",
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write a checkpoint that a server can be started on to the folder `path`, and return it.

    `overrides` go into the transformers config (`num_hidden_layers=1`, `tie_word_embeddings=False`, ...).
    `max_shard_size`, e.g. `"200KB"`, gives a sharded one. Half a second after transformers is imported.
    """
    model_class, config_class, settings = _FAMILIES[family]
    config = config_class(**{**_SIZES, **settings, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name else 0.0
            torch.nn.init.normal_(parameter, center, 0.1 if parameter.ndim == 1 else _spread(parameter))
    model = model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=3)  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(path, max_shard_size=max_shard_size)
    if tokenizer:
        write_tokenizer(path, config.vocab_size)
    return path


def _spread(weight: torch.Tensor) -> float:
    """Standard deviation that keeps activations near unit size: 1 / sqrt(inputs); twice that, to be unlike a mean."""
    return float(2.0 / weight.shape[1] ** 0.5)


def write_tokenizer(path: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """A byte-level BPE with the special tokens above and a chat template; ids 0 to vocab_size - 1 all decode."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(_tokenizer_json(vocab_size))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "pad_token": "<|pad|>",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


@lru_cache(maxsize=4)
def _tokenizer_json(vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, 480),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [str(__doc__), "The quick brown fox jumps over the lazy dog. Ein schöner Tag, 日本語, 🙂🙃 naïve café."]
    tokenizer.train_from_iterator(texts, trainer)
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    for token_id in range(len(vocabulary), vocab_size):
        vocabulary[f"Ġt{token_id}"] = token_id
    return json.dumps(document, ensure_ascii=False)
