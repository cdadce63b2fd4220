#!/usr/bin/env python3
"""Folders with the shapes of well-known models and no weights: for `--device sim:...` and `--device null`.

    python tools/sim_models.py OUT [NAME ...]

Each gets a config.json with the sizes of the model's own, and the demo model's tokenizer and chat template, which say
what a device without a model says. Without names all are written.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

from albireo.serve import DEMO_MODEL

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
EOS_TOKEN_ID: Final = 2
"""Of the demo model's tokenizer."""

_QWEN3: Final = {
    "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "attention_bias": False,
}  # fmt: skip
_LLAMA31: Final = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
_MISTRAL: Final = {
    "architectures": ["MistralForCausalLM"], "vocab_size": 32768, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None,
}  # fmt: skip


def sizes(hidden: int, inner: int, layers: int, heads: int, is_tied: bool = False) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "tie_word_embeddings": is_tied,
    }  # fmt: skip


SHAPES: Final[dict[str, dict[str, Any]]] = {
    "qwen3-0.6b": _QWEN3 | sizes(1024, 3072, 28, 16, is_tied=True),
    "qwen3-4b": _QWEN3 | sizes(2560, 9728, 36, 32, is_tied=True),
    "qwen3-8b": _QWEN3 | sizes(4096, 12288, 36, 32),
    "qwen3-14b": _QWEN3 | sizes(5120, 17408, 40, 40),
    "qwen3-32b": _QWEN3 | sizes(5120, 25600, 64, 64),
    "llama-3.1-8b": _LLAMA31 | sizes(4096, 14336, 32, 32),
    "llama-3.1-70b": _LLAMA31 | sizes(8192, 28672, 80, 64),
    "mistral-7b": _MISTRAL | sizes(4096, 14336, 32, 32),
}
"""By folder name: what the models' own config.json files say."""


def write_model(out: Path, name: str) -> Path:
    """The folder `out`/`name`, with its parents; files that are there are replaced."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    common = {"dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": None, "eos_token_id": EOS_TOKEN_ID}
    (folder / "config.json").write_text(json.dumps(SHAPES[name] | common, indent=2) + "\n")
    for file in TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL / file, folder / file)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SHAPES))
    args = parser.parse_args()
    for name in args.names:
        if name not in SHAPES:
            parser.error(f"no shape {name}: there are {', '.join(SHAPES)}")
    for name in args.names or SHAPES:
        print(write_model(args.out, name))


if __name__ == "__main__":
    main()
