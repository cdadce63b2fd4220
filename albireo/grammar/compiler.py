"""From a grammar's source to a matcher, within bounds on size and effort. llguidance does the work.

What a client sends can be made to explode: nested repetitions, schemas that refer to themselves, alternatives without
end (vLLM: CVE-2025-48942 to -48944; xgrammar: CVE-2025-32381, -57809). llguidance counts fuel while it compiles and in
every mask, and refuses what runs out of it. What would get past that still ends no more than this process.
"""

import json
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import llguidance

from albireo import limits

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


WHITESPACE: Final = r" |\n {0,40}"
"""Between JSON's signs, beside nothing at all: a blank, or a line end with its indentation. Models have their ways, and
one that finds no end to blanks would write them until its tokens are used up."""


class GrammarError(Exception):
    """The grammar cannot be served; the message is for its client."""


class Compiler:
    """One model's tokenizer with bounded compilation. Thread-safe: compiling drops the GIL."""

    def __init__(self, tokenizer_path: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Reads the tokenizer: up to a second for a large one. Raises GrammarError where llguidance cannot use it."""
        if not eos_token_ids:
            raise GrammarError("the model has no end-of-sequence token")
        try:
            self.tokenizer = llguidance.LLTokenizer(
                str(Path(tokenizer_path) / "tokenizer.json"), n_vocab=vocab_size, eos_token=list(eos_token_ids)
            )
        except Exception as error:  # the library raises ValueError, and whatever the tokenizer's loader does
            raise GrammarError(f"the tokenizer is not usable for grammars: {one_line(str(error))}") from error
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=limits.GRAMMAR_LEXER_FUEL,
            step_lexer_fuel=limits.GRAMMAR_STEP_FUEL,
            step_max_items=limits.GRAMMAR_STEP_ITEMS,
            max_lexer_states=limits.GRAMMAR_LEXER_STATES,
            max_grammar_size=limits.GRAMMAR_SYMBOLS,
            verbose_errors=False,
        )

    def compile(self, kind: str, source: str) -> llguidance.LLMatcher:
        """A matcher at the beginning of the output. Raises GrammarError."""
        try:
            matcher = llguidance.LLMatcher(self.tokenizer, _grammar(kind, source), log_level=0, limits=self._limits)
        except ValueError as error:
            raise GrammarError(one_line(str(error))) from error
        if matcher.is_error():
            raise GrammarError(one_line(matcher.get_error()))
        return matcher


def _grammar(kind: str, source: str) -> str:
    if kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(source)
    if kind == "lark":
        for schema in _embedded_schemas(source):
            _check_multiples(schema)
        return llguidance.LLMatcher.grammar_from_lark(source)
    return llguidance.LLMatcher.grammar_from_json_schema(_schema(source), defaults={"whitespace_pattern": WHITESPACE})


def _schema(source: str) -> dict[str, Any]:
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is not valid JSON: {one_line(str(error))}") from error
    if not isinstance(schema, dict):
        raise GrammarError("the schema must be a JSON object")
    _check_multiples(schema)
    return schema


def _embedded_schemas(source: str) -> list[object]:
    """What follows `%json` in a Lark grammar."""
    schemas = []
    for match in re.finditer(r"%json\s*", source):
        try:
            schemas.append(json.JSONDecoder().raw_decode(source, match.end())[0])
        except (ValueError, RecursionError):  # for the library to refuse, or a comment
            continue
    return schemas


def _check_multiples(schema: object) -> None:
    """What fuel does not count: `multipleOf` is an automaton with a state per remainder, those of subschemas that are
    merged have their least common multiple, and each use of one may be merged with something else."""
    divisors: set[Decimal] = set()
    uses = 0
    values = [schema]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            divisor = value.get("multipleOf")
            if isinstance(divisor, int) or (isinstance(divisor, float) and math.isfinite(divisor)):
                divisors.add(Decimal(str(abs(divisor))))
            uses += ("multipleOf" in value) + ("$ref" in value)
            values += value.values()
        elif isinstance(value, list):
            values += value
    divisors.discard(Decimal(0))
    scale = 10 ** max([0, *(-int(divisor.as_tuple().exponent) for divisor in divisors)])
    multiple = 1
    for divisor in divisors:  # one by one: the multiple of thousands has digits that take seconds
        multiple = math.lcm(multiple, int(Fraction(divisor) * scale))
        if multiple * uses > limits.GRAMMAR_REMAINDERS:
            raise GrammarError(
                "multipleOf: the least common multiple of a schema's, in units of their last digit, times the number "
                f"of multipleOf and $ref in it must be at most {limits.GRAMMAR_REMAINDERS}"
            )


def one_line(text: str) -> str:
    """An error's first sentence as clients may see it: one line, bounded, without control characters."""
    first = next((line for line in text.splitlines() if line.strip()), "it is not a valid grammar")
    return _CONTROL.sub(" ", first).strip()[: limits.MAX_ECHO_CHARS]


class CompiledGrammars:
    """The newest compiled grammars, ready to be copied: most clients send the same few over and over."""

    def __init__(self, size: int = limits.MAX_COMPILED_GRAMMARS) -> None:
        self._size = size
        self._entries: OrderedDict[tuple[str, str], llguidance.LLMatcher] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, kind: str, source: str) -> llguidance.LLMatcher | None:
        """A matcher of one's own, at the beginning of the output."""
        matcher = self._entries.get((kind, source))
        if matcher is None:
            return None
        self._entries.move_to_end((kind, source))
        return matcher.deep_copy()

    def put(self, kind: str, source: str, matcher: llguidance.LLMatcher) -> None:
        """Keeps a copy of a matcher that has not moved; the one that was longest without use makes room."""
        self._entries[kind, source] = matcher.deep_copy()
        self._entries.move_to_end((kind, source))
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
