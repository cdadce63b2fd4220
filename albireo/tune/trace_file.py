"""Recorded arrivals: when requests came, how long their prompts and answers were. No text is in such files.

Read are JSON lines as of the Mooncake traces (`timestamp` in milliseconds, `input_length`, `output_length`, `hash_ids`:
a number for each 512 tokens of the prompt, the same for those that are the same), the same with times of day,
and the CSV of the Azure LLM inference traces (`TIMESTAMP,ContextTokens,GeneratedTokens`).
"""

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from albireo.bench.prompts import BLOCK_WORDS, PromptError

MAX_LENGTH = 10_000_000
"""Tokens of a prompt or an answer, beyond any model's context: prompts are made and held in memory."""
_AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
_MICROSECOND_DIGITS = 6
Length = Annotated[int, Meta(ge=0, le=MAX_LENGTH)]


class Arrival(Struct, frozen=True):
    """One recorded request."""

    at_s: float
    """After the first one."""
    input_len: int
    output_len: int
    hash_ids: tuple[int, ...] = ()
    """Of the prompt's blocks of 512 tokens, from its beginning; empty where the trace says nothing."""


class _Line(Struct):
    timestamp: float | str
    """Milliseconds, or an ISO 8601 time."""
    input_length: Length
    output_length: Length
    hash_ids: tuple[int, ...] = ()


def read_trace(path: str, most: int, speed: float) -> list[Arrival]:
    """The first `most` requests, in the order of their times, `speed` times as fast as they came; requests without a
    prompt or an answer are left out. Raises PromptError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PromptError(f"cannot read --trace {path}: {reason}") from None
    is_csv = bool(lines) and lines[0].replace(" ", "") == _AZURE_HEADER
    try:
        found = [each for each in (_csv if is_csv else _json)(lines) if each.input_len > 0 and each.output_len > 0]
    except (ValueError, OverflowError, csv.Error) as error:
        raise PromptError(f"--trace {path} is no trace of requests: {error}") from None
    if not found:
        raise PromptError(f"--trace {path} has no request that can be sent")
    found.sort(key=lambda each: each.at_s)
    first_s = found[0].at_s
    return [msgspec.structs.replace(each, at_s=(each.at_s - first_s) / speed) for each in found[:most]]


def _json(lines: Sequence[str]) -> Iterator[Arrival]:
    """With times since whenever."""
    decoder = msgspec.json.Decoder(_Line)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = decoder.decode(line)
            at = record.timestamp
            at_s = _seconds(at) if isinstance(at, str) else at / 1e3
            _check_blocks(record)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from None
        yield Arrival(at_s, record.input_length, record.output_length, record.hash_ids)


def _check_blocks(record: _Line) -> None:
    """Other traces have blocks of other sizes, whose prompts would share too much."""
    most = -(-record.input_length // BLOCK_WORDS)
    if 0 < most < len(record.hash_ids):
        raise ValueError(
            f"hash_ids has {len(record.hash_ids)} numbers for {record.input_length} tokens: at most {most} are "
            f"possible, one for each {BLOCK_WORDS}"
        )


def _csv(lines: Sequence[str]) -> Iterator[Arrival]:
    """The same."""
    reader = csv.reader(lines[1:], skipinitialspace=True)
    for row in reader:
        if not row:
            continue
        try:
            at, given, made = row
            lengths = msgspec.convert((given, made), tuple[Length, Length], strict=False)
            yield Arrival(_seconds(at), *lengths)
        except ValueError as error:
            raise ValueError(f"line {reader.line_num + 1}: {error}") from None


def _seconds(text: str) -> float:
    """Azure writes seven digits behind the second's point, of which datetime takes six. A time without a zone is UTC:
    no hour is missing or twice there."""
    whole, point, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    time = datetime.fromisoformat(whole + point + rest[: min(digits, _MICROSECOND_DIGITS)] + rest[digits:])
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
