"""Compiling: what is accepted matches, what is too much is refused with a reason."""

import json
import re
from typing import Any

import jsonschema
import pytest
from model_tokenizer import compiler, random_text

from albireo import limits
from albireo.grammar.compiler import CompiledGrammars, Compiler, GrammarError, one_line


@pytest.fixture(scope="module")
def grammars() -> Compiler:
    return compiler()


@pytest.mark.parametrize("seed", range(5))
def test_any_walk_along_a_schemas_masks_is_valid(grammars: Compiler, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": -5, "maximum": 40},
            "price": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 9},
            "s": {"type": "string", "maxLength": 6},
            "l": {"type": "array", "items": {"enum": ["x", 1]}, "maxItems": 3},
        },
        "required": ["n", "price"],
        "additionalProperties": False,
    }
    text = random_text(grammars.tokenizer, grammars.compile("json_schema", json.dumps(schema)), seed)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(3))
def test_regular_expressions_match_as_a_whole_and_lark_grammars_too(grammars: Compiler, seed: int) -> None:
    assert re.fullmatch(
        r"(ab|c){2,4}-\d", random_text(grammars.tokenizer, grammars.compile("regex", r"(ab|c){2,4}-\d"), seed)
    )
    lark = 'start: "<" start ">" | /[xy]{1,3}/'
    assert re.fullmatch(r"(<*)[xy]{1,3}(>*)", random_text(grammars.tokenizer, grammars.compile("lark", lark), seed))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "[a-"),
        ("regex", "(" * 2000 + "a" + ")" * 2000),
        ("lark", "start: nowhere"),
        ("lark", "start: " + "(" * 9000 + '"a"' + ")" * 9000),
        ("lark", 'start: %json {"anyOf":' + "[" * 9000 + "]" * 9000 + "}"),
        ("json_schema", "[]"),
        ("json_schema", "{"),
        ("json_schema", '{"type": "strin"}'),
        ("json_schema", '{"$ref": "#/nowhere"}'),
        ("json_schema", '{"type": "string", "pattern": "^(a|b)*a(a|b){14}c$", "minLength": 30}'),
    ],
)
def test_what_does_not_compile_is_refused_in_one_line(grammars: Compiler, kind: str, source: str) -> None:
    with pytest.raises(GrammarError) as error:
        grammars.compile(kind, source)
    assert 0 < len(str(error.value)) <= limits.MAX_ECHO_CHARS
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99999989},
        {"multipleOf": -99999989},
        {"type": "number", "multipleOf": 1.00000001},
        {"properties": {"a": {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}}},
        {"$defs": {"m": {"multipleOf": 9973}}, "prefixItems": [{"$ref": "#/$defs/m", "minimum": i} for i in range(50)]},
        # their multiple has a million digits and takes seconds, in which no other thread runs
        {"allOf": [{"multipleOf": float(f"{10**9 + i}e{290 - i % 590}")} for i in range(6000)]},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_multiples_that_would_take_minutes_are_refused_at_once(grammars: Compiler, schema: dict[str, Any]) -> None:
    for kind, source in (("json_schema", json.dumps(schema)), ("lark", f"start: %json {json.dumps(schema)}")):
        with pytest.raises(GrammarError, match="multipleOf"):
            grammars.compile(kind, source)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 1000},
        {"type": "number", "multipleOf": 0.01},
        {"properties": {name: {"type": "number", "multipleOf": 0.01} for name in "abcdefgh"}},
        {"properties": {"multipleOf": {"type": "string"}}},
    ],
)
def test_multiples_in_common_use_compile(grammars: Compiler, schema: dict[str, Any]) -> None:
    assert not grammars.compile("json_schema", json.dumps(schema)).is_error()


def test_schemas_that_refer_to_themselves_compile(grammars: Compiler) -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    jsonschema.validate(
        json.loads(random_text(grammars.tokenizer, grammars.compile("json_schema", json.dumps(tree)), 3)), tree
    )


def test_an_error_is_shown_without_control_characters_and_cut_off() -> None:
    assert one_line("\n  a\tb\x1b[31m\nsecond") == "a b [31m"
    assert len(one_line("x" * 10_000)) == limits.MAX_ECHO_CHARS
    assert one_line("") == "it is not a valid grammar"


def test_the_grammars_used_last_are_kept_and_copies_do_not_move_each_other(grammars: Compiler) -> None:
    kept = CompiledGrammars(size=2)
    for letter in "ab":
        kept.put("regex", letter, grammars.compile("regex", letter))
    first = kept.get("regex", "a")
    assert first is not None and first.consume_token(_token(grammars, "a"))
    second = kept.get("regex", "a")
    assert second is not None and second.consume_token(_token(grammars, "a"))
    kept.put("regex", "c", grammars.compile("regex", "c"))
    assert len(kept) == 2
    assert kept.get("regex", "b") is None and kept.get("lark", "a") is None and kept.get("regex", "c") is not None


def _token(grammars: Compiler, text: str) -> int:
    (token,) = grammars.tokenizer.tokenize_str(text)
    return token


def test_a_model_without_an_end_token_or_tokenizer_serves_none(tmp_path: Any) -> None:
    with pytest.raises(GrammarError, match="end-of-sequence"):
        Compiler(str(tmp_path), 100, [])
    with pytest.raises(GrammarError, match="not usable"):
        Compiler(str(tmp_path), 100, [1])
