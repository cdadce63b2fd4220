"""Small tokenizers as checkpoints have them, built in a moment."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, how are you today?\n",
    "def function(argument): return argument + 1  # a comment\n",
    "Ein Übergrößenträger läuft über die Straße; cela coûte 5 €. 你好,世界 😀👍🏽\n",
] * 4
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level() -> Tokenizer:
    """As of Qwen: byte-level BPE, no BOS; `<think>` and `</think>` are added tokens that are not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    return tokenizer


def byte_level_with_bos() -> Tokenizer:
    """As of Llama 3: the same, and a post-processor that puts a BOS first."""
    tokenizer = byte_level()
    bos = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As of Llama 2: "▁" for spaces and one in front, bytes that are no piece as <0xXX>, BOS from the
    post-processor."""
    text = "".join(CORPUS).replace(" ", "▁")
    characters = sorted({character for character in text if character.isascii() or character == "▁"} | {"世", "é"})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    merges = [("▁", "H"), ("▁H", "e"), ("l", "l"), ("▁He", "ll"), ("▁Hell", "o"), ("▁", "w"), ("▁w", "o"), ("▁", "t")]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *("".join(m) for m in merges)]))}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, chat_template: str | None = CHATML, **config: Any) -> Path:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers saves them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder
