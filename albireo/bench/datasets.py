"""Prompts that come from a file: ShareGPT's conversations, filtered as `vllm bench serve` does, and one's own JSONL."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

from albireo.bench.prompts import Prompt, PromptError, PromptMaker
from albireo.bench.settings import ServeBenchSettings

MIN_TOKENS = 4
MAX_PROMPT_TOKENS = 1024
MAX_TOTAL_TOKENS = 2048
"""Of a ShareGPT conversation's first turn and its answer: shorter and longer ones are left out, as in vLLM."""
DEFAULT_OUTPUT_LEN = 128
"""Where neither a flag nor the file says."""


class _Turn(Struct):
    value: str


class _Conversation(Struct):
    conversations: list[_Turn] = []


class _Line(Struct):
    prompt: str
    output_tokens: int | None = None
    output_len: int | None = None


def make_prompts(settings: ServeBenchSettings, tokenizer: Tokenizer) -> tuple[list[Prompt], list[Prompt]]:
    """Those of the warm-up and the measured ones; the two share no prompt unless the file has too few.
    Raises PromptError."""
    if settings.dataset_name == "random":
        # warm-up prompts come from another seed: they must not fill a prefix cache for the measured ones
        warmups = _random(settings, tokenizer, settings.num_warmups, settings.seed + 2**32)
        return warmups, _random(settings, tokenizer, settings.num_prompts, settings.seed)
    found = _from_file(settings, tokenizer, settings.num_prompts + settings.num_warmups)
    if not found:
        raise PromptError(f"{settings.dataset_path} has no prompt that can be used")
    # fewer than asked for: some are sent again, as in vLLM
    prompts = [found[index % len(found)] for index in range(settings.num_prompts + settings.num_warmups)]
    return prompts[settings.num_prompts :], prompts[: settings.num_prompts]


def _random(settings: ServeBenchSettings, tokenizer: Tokenizer, count: int, seed: int) -> list[Prompt]:
    if not count:
        return []
    return PromptMaker(tokenizer, seed).make(count, settings.input_len, settings.prefix_len)


def _from_file(settings: ServeBenchSettings, tokenizer: Tokenizer, most: int) -> list[Prompt]:
    """Up to `most` of a file's prompts, shuffled by the seed; an `output_len` of the settings is all prompts'."""
    try:
        content = Path(settings.dataset_path or "").read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read --dataset-path {settings.dataset_path}: {error.strerror}") from None
    try:
        prompts = _sharegpt(content, settings, tokenizer) if settings.dataset_name == "sharegpt" else _custom(
            content, settings, tokenizer
        )  # fmt: skip
        found: list[Prompt] = []
        for prompt in prompts:
            found.append(prompt)
            if len(found) == most:
                break
    except msgspec.MsgspecError as error:
        raise PromptError(
            f"--dataset-path {settings.dataset_path} is no {settings.dataset_name} file: {error}"
        ) from None
    return found


def _sharegpt(content: bytes, settings: ServeBenchSettings, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """First turns, each with its answer's length, of conversations of two turns or more."""
    conversations = [c for c in msgspec.json.decode(content, type=list[_Conversation]) if len(c.conversations) >= 2]
    random.Random(settings.seed).shuffle(conversations)
    for conversation in conversations:
        question, answer = (turn.value for turn in conversation.conversations[:2])
        ids = tokenizer.encode(question).ids
        output_len = settings.output_len or len(tokenizer.encode(answer).ids)
        is_long_enough = len(ids) >= MIN_TOKENS and (settings.output_len is not None or output_len >= MIN_TOKENS)
        if is_long_enough and len(ids) <= MAX_PROMPT_TOKENS and len(ids) + output_len <= MAX_TOTAL_TOKENS:
            yield Prompt(question, ids, output_len)


def _custom(content: bytes, settings: ServeBenchSettings, tokenizer: Tokenizer) -> Iterator[Prompt]:
    """A JSON object a line: `prompt`, and `output_tokens` or `output_len` where a prompt has its own."""
    lines = msgspec.json.Decoder(_Line).decode_lines(b"\n".join(line for line in content.splitlines() if line.strip()))
    random.Random(settings.seed).shuffle(lines)
    for line in lines:
        output_len = settings.output_len or line.output_tokens or line.output_len or DEFAULT_OUTPUT_LEN
        yield Prompt(line.prompt, tokenizer.encode(line.prompt).ids, output_len)
