"""Small tokenizers of the kinds that checkpoints have, trained in a moment."""

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "the quick brown fox jumps over the lazy dog while seven wizards watch from a distant hill and wonder why",
    "many small words make a vocabulary large enough for random prompts of any length that a test may ask for",
    "python functions return values and raise errors when arguments have the wrong type or the wrong number",
] * 8


def byte_level() -> Tokenizer:
    """As of Qwen and Llama 3: byte-level BPE, a word's token holds the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<bos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level_with_bos() -> Tokenizer:
    """As of Llama 3: the same, and every prompt begins with a special token."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """As of Llama 2 and Mistral: spaces become a visible mark, and one is put before the first word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level with BOS": byte_level_with_bos,
    "sentencepiece-like": sentencepiece_like,
}
