"""Tool calls and reasoning in every format: cut into whatever pieces, the same message comes out."""

import json
from collections.abc import Callable, Set
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.frontend.message_parts import (
    Message,
    MessageParser,
    Part,
    ToolCallArguments,
    ToolCallBegin,
    whole_message,
)
from albireo.frontend.output_parsers.hermes import HermesParser
from albireo.frontend.output_parsers.json_list import JsonListParser
from albireo.frontend.output_parsers.llama_json import LlamaJsonParser
from albireo.frontend.output_parsers.mistral import MistralParser
from albireo.frontend.output_parsers.named_call import NamedCallParser
from albireo.frontend.output_parsers.reasoning import PlainText, ReasoningParser

Call = tuple[str, dict[str, Any]]
MakeToolParser = Callable[[Set[str]], MessageParser]
NAMES = frozenset({"f", "get.it"})

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["</tool_call>", "}{", '\\"', "]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.from_regex(r"[a-z_][a-z0-9_.]{0,10}", fullmatch=True)
calls = st.lists(st.tuples(names, st.dictionaries(st.text(max_size=6), values, max_size=3)), min_size=1, max_size=3)
prose = st.text(
    st.characters(exclude_characters="<[{|;\r\n\t \x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0", codec="utf-8"), max_size=12
)
cuts = st.lists(st.integers(0, 400), max_size=12)


def run(parser: MessageParser, text: str, at: list[int]) -> tuple[Message, list[Part]]:
    """The message of `text` fed in pieces that end `at` these places."""
    edges = [0, *sorted({min(cut, len(text)) for cut in at}), len(text)]
    parts = [part for begin, end in pairwise(edges) for part in parser.feed(text[begin:end])]
    parts += parser.end()
    return whole_message(parts), parts


def content(message: Message) -> tuple[str, str, list[tuple[str, str]]]:
    """All but the calls' ids."""
    return message.text, message.reasoning, [(call.name, call.arguments) for call in message.tool_calls]


def content_in_any_pieces(make: MakeToolParser, text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls, which are the same however the output is cut."""
    whole = content(run(make(NAMES), text, [])[0])
    for at in range(len(text) + 1):
        assert content(run(make(NAMES), text, [at, at + 3])[0]) == whole
    assert content(run(make(NAMES), text, list(range(len(text))))[0]) == whole
    return whole[0], whole[2]


def hermes(called: list[Call], space: str) -> str:
    return space.join(
        f"<tool_call>{space}" + json.dumps({"name": name, "arguments": arguments}) + f"{space}</tool_call>"
        for name, arguments in called
    )


def hermes_turned(called: list[Call], space: str) -> str:
    return "".join(
        "<tool_call>" + json.dumps({"arguments": arguments, "name": name}, ensure_ascii=False) + "</tool_call>"
        for name, arguments in called
    )


def llama(called: list[Call], space: str) -> str:
    return f";{space}".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in called)


def llama_tagged(called: list[Call], space: str) -> str:
    return "<|python_tag|>" + llama(called, space)


def mistral_list(called: list[Call], space: str) -> str:
    return f"[TOOL_CALLS]{space}" + json.dumps([{"name": name, "arguments": values} for name, values in called])


def mistral_names(called: list[Call], space: str) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(values)}" for name, values in called)


def mistral_ids(called: list[Call], space: str) -> str:
    return space.join(
        f"[TOOL_CALLS]{name}[CALL_ID]{space}VvvODy9mT[ARGS]{space}{json.dumps(values)}" for name, values in called
    )


def json_list(called: list[Call], space: str) -> str:
    return json.dumps([{"name": name, "parameters": values} for name, values in called], indent=len(space) or None)


Write = Callable[[list[Call], str], str]
FORMATS: list[tuple[MakeToolParser, Write]] = [
    (HermesParser, hermes), (HermesParser, hermes_turned), (LlamaJsonParser, llama), (LlamaJsonParser, llama_tagged),
    (MistralParser, mistral_list), (MistralParser, mistral_names), (MistralParser, mistral_ids),
    (JsonListParser, json_list),
]  # fmt: skip


@pytest.mark.parametrize(("make", "write"), FORMATS, ids=lambda value: value.__name__)
@settings(deadline=None)
@given(called=calls, space=st.sampled_from(["", " ", "\n"]), at=cuts)
def test_calls_come_out_as_they_were_written(
    make: MakeToolParser, write: Write, called: list[Call], space: str, at: list[int]
) -> None:
    message, _ = run(make({name for name, _ in called}), write(called, space), at)
    assert [(call.name, json.loads(call.arguments)) for call in message.tool_calls] == called
    assert message.text.strip() == ""
    assert len({call.id for call in message.tool_calls}) == len(called)


@settings(deadline=None)
@given(before=prose, called=calls, after=prose, at=cuts)
def test_text_around_hermes_calls_stays(before: str, called: list[Call], after: str, at: list[int]) -> None:
    message, _ = run(HermesParser({name for name, _ in called}), before + hermes(called, "\n") + after, at)
    assert message.text == before + after
    assert [call.name for call in message.tool_calls] == [name for name, _ in called]


@settings(deadline=None)
@given(thought=st.text(max_size=20), answer=st.text(max_size=20), opened=st.booleans(), at=cuts)
def test_reasoning_is_told_from_the_answer(thought: str, answer: str, opened: bool, at: list[int]) -> None:
    if "</think>" in thought or (opened and "<think>".startswith(thought.lstrip()[:1] or "<")):
        return
    text = ("" if opened else "<think>") + thought + "</think>\n\n" + answer
    message, _ = run(ReasoningParser(PlainText(), begins_inside=opened), text, at)
    assert message.reasoning == thought
    assert message.text == answer.lstrip("\r\n")


def test_an_answer_without_reasoning_is_an_answer() -> None:
    for at in range(8):
        assert run(ReasoningParser(PlainText(), False), "<b>no</b>", [at])[0] == Message(text="<b>no</b>")
    assert run(ReasoningParser(PlainText(), True), "never closed", [3])[0] == Message(reasoning="never closed")
    assert (
        run(ReasoningParser(HermesParser(NAMES), False), "<think>a</think>" + hermes([("f", {})], ""), [5, 20])[0]
        .tool_calls[0]
        .name
        == "f"
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (HermesParser, "<tool_call>no json</tool_call>"), (HermesParser, '<tool_call>{"name": 5}</tool_call>'),
        (HermesParser, "a <tool_cal"), (HermesParser, '<tool_call>{"arguments": {"a": 1}}</tool_call> b'),
        (HermesParser, '<tool_call>{"name": "unknown", "arguments": {"a": 1}}</tool_call> b'),
        (HermesParser, '<tool_call>{"arguments": {"a": 1}, "name": "unknown"}</tool_call> b'),
        (HermesParser, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        (HermesParser, '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>'),
        (HermesParser, '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>'),
        (HermesParser, '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>'),
        (HermesParser, '<tool_call>{"name": "f"</tool_call>'), (HermesParser, '<tool_call>{"name": "f", "argum'),
        (HermesParser, '<tool_call>{"name": "f", "arguments": null</tool_call>'),
        (LlamaJsonParser, '{"a": 1}'), (LlamaJsonParser, "{not json"), (LlamaJsonParser, "plain {"),
        (LlamaJsonParser, '{"name":"Bob","age":3}'), (LlamaJsonParser, '{"name": "f", "age": 3}'),
        (LlamaJsonParser, '{"name": "Bob", "parameters": {"a": 1}}'), (LlamaJsonParser, '{"name": "f"}'),
        (LlamaJsonParser, ' <|python_tag|> {"name": "Bob"}'), (LlamaJsonParser, '\n{"parameters": {}} b'),
        (MistralParser, "[TOOL_CALLS]no[CALL_ID]VvvODy9mT[ARGS]{} b"), (MistralParser, "[TOOL_CALLS]"),
        (MistralParser, "[TOOL"), (MistralParser, '[TOOL_CALLS]unknown{"a": 1} b'),
        (MistralParser, '[TOOL_CALLS] [{"name": "unknown", "arguments": {}}] b'), (MistralParser, "[TOOL_CALLS]{}"),
        (JsonListParser, "plain"), (JsonListParser, "[{"), (JsonListParser, '[{"name": "unknown", "parameters": {}}]'),
    ],
)  # fmt: skip
def test_what_is_no_call_is_text(make: MakeToolParser, text: str) -> None:
    assert content_in_any_pieces(make, text) == (text, [])


def test_arguments_nested_too_deep_to_be_read_are_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": "' + "[" * 9000 + '"}</tool_call>'
    assert content(run(HermesParser(NAMES), text, [50])[0]) == (text, "", [])


@pytest.mark.parametrize(
    ("make", "text"),
    [(JsonListParser, '[{"name": "f", "parameters": {'), (MistralParser, '[TOOL_CALLS] [{"name": "f", "arguments": {')],
)
def test_a_call_that_was_cut_off_leaves_no_bracket_as_text(make: MakeToolParser, text: str) -> None:
    assert content_in_any_pieces(make, text) == ("", [("f", "{")])


A_CALL = '{"name": "f", "arguments": {"a": 1}'
"""Its closing brace is missing."""


@pytest.mark.parametrize(
    ("text", "after", "arguments"),
    [
        ('{"name": "f", "arguments": null}', " b", ["{}"]), ('{"name": "f"}', " b", ["{}"]),
        ('{"arguments": null, "name": "f"}', " b", ["{}"]),
        ('{"name": "f", "id": [{}, -1.5e3], "x": true}', "", ["{}"]),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', " b", ['{"a": 1}']),
        ('{"arguments": "{\\"a\\": 1}", "name": "f"}', " b", ['{"a": 1}']),
        (A_CALL, "\nb", ['{"a": 1}']), (A_CALL + "}}", "", ['{"a": 1}']), (A_CALL + "}}</tool_c", "", ['{"a": 1}']),
        (A_CALL + '}, "id": 5', " b", ['{"a": 1}']), (A_CALL + ', "name": "f"}', " b", ['{"a": 1}']),
        (A_CALL + ', "parameters": {}}', " b", ['{"a": 1}']), (A_CALL + ', "id": <', " b", ['{"a": 1}']),
        ('{"name": "f", "arguments": {"a": 1', " b", ['{"a": 1']),
        ('{"name": "f", "arguments": {"a": [1}}', " b", ['{"a": [1']),
        ('{"name": "f", "arguments": {"a": "</tool_call>"}}', " b", ['{"a": "</tool_call>"}']),
        (A_CALL + "}\n<tool_call>" + A_CALL, "b", ['{"a": 1}', '{"a": 1}']),
        ('{"name": "f", "arguments": {"a": 1 <tool_call>' + A_CALL, "b", ['{"a": 1 ', '{"a": 1}']),
    ],
)  # fmt: skip
def test_nothing_of_a_malformed_hermes_call_is_text(text: str, after: str, arguments: list[str]) -> None:
    end = "" if text.endswith("</tool_c") else "</tool_call>"
    expected = after.lstrip(), [("f", each) for each in arguments]
    assert content_in_any_pieces(HermesParser, f"<tool_call>{text}{end}{after}") == expected


A_LLAMA_CALL = '{"name": "f", "parameters": {"a": 1}'


@pytest.mark.parametrize(
    ("make", "text", "after", "arguments"),
    [
        (LlamaJsonParser, '{"name": "f", "parameters": null}', "", ["{}"]),
        (LlamaJsonParser, A_LLAMA_CALL, "", ['{"a": 1}']), (LlamaJsonParser, A_LLAMA_CALL + "}}; b", "b", ['{"a": 1}']),
        (LlamaJsonParser, A_LLAMA_CALL + "; " + A_LLAMA_CALL + "}", "", ['{"a": 1}'] * 2),
        (LlamaJsonParser, A_LLAMA_CALL + '}; {"name": "Bob"}', '{"name": "Bob"}', ['{"a": 1}']),
        (LlamaJsonParser, '{"name": "f", "parameters": {"a": [1}}; b', "", ['{"a": [1']),
        (JsonListParser, f"[{A_CALL}]", "", ['{"a": 1}']), (JsonListParser, f"[{A_CALL}}}}}]", "", ['{"a": 1}']),
        (JsonListParser, f"[{A_CALL}}}, ", "", ['{"a": 1}']),
        (JsonListParser, f"[{A_CALL}, {A_CALL}", "", ['{"a": 1}'] * 2),
        (JsonListParser, '[{"name": "f", "parameters": null}]', "", ["{}"]),
        (JsonListParser, '[{"name": "f", "parameters": {"a": [1}}, b', "", ['{"a": [1']),
        (JsonListParser, f'[{A_CALL}}}, {{"name": "no"}}]', '{"name": "no"}]', ['{"a": 1}']),
        (MistralParser, f"[TOOL_CALLS] [{A_CALL}}}}}, {A_CALL}]", "", ['{"a": 1}'] * 2),
        (MistralParser, '[TOOL_CALLS][{"name": "f", "arguments": {"a": <', "", ['{"a": ']),
        (MistralParser, '[TOOL_CALLS]f{"a": 1}} b', "b", ['{"a": 1}']),
        (MistralParser, '[TOOL_CALLS]f{"a": [1}, [TOOL_CALLS]f{"a": 1}', "", ['{"a": [1', '{"a": 1}']),
        (MistralParser, '[TOOL_CALLS]f{"a": [1}, [TOOL_', "", ['{"a": [1']),
        (MistralParser, '[TOOL_CALLS]f{"a": [1}, [TOOL_CALLS]no{}', "[TOOL_CALLS]no{}", ['{"a": [1']),
        (MistralParser, "[TOOL_CALLS]no{}[TOOL_CALLS]f {}", "[TOOL_CALLS]no{}", ["{}"]),
    ],
)  # fmt: skip
def test_nothing_of_a_malformed_call_is_text(make: MakeToolParser, text: str, after: str, arguments: list[str]) -> None:
    assert content_in_any_pieces(make, text) == (after, [("f", each) for each in arguments])


def test_mistral_s_calls_have_ids_that_its_templates_take() -> None:
    for text in ('[TOOL_CALLS]f{"a": 1}', "[TOOL_CALLS]f[CALL_ID]x[ARGS]{}", '[TOOL_CALLS][{"name": "f"}]'):
        (call,) = run(MistralParser(NAMES), text, [])[0].tool_calls
        assert len(call.id) == 9 and call.id.isalnum() and call.id.isascii()


def test_how_long_a_name_may_be_does_not_depend_on_the_pieces() -> None:
    for num_spaces in range(197, 204):
        content_in_any_pieces(MistralParser, "[TOOL_CALLS]f" + " " * num_spaces + "{}")


ALL: list[Callable[[], MessageParser]] = [
    lambda: HermesParser(NAMES), lambda: LlamaJsonParser(NAMES), lambda: MistralParser(NAMES),
    lambda: JsonListParser(NAMES), lambda: NamedCallParser("f"),
    lambda: ReasoningParser(HermesParser(NAMES), False), lambda: ReasoningParser(MistralParser(NAMES), True),
]  # fmt: skip
fragments = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[", "]", "{", "}", '"name"', ":", '"f"',
     ",", "<think>", "</think>", '"arguments"', '"parameters"', "{}", "<|python_tag|>", ";", " ", "\n", "\\", '"', "x",
     "<", "1"]
)  # fmt: skip


@pytest.mark.parametrize("make", ALL)
@settings(deadline=None, max_examples=200)
@given(text=st.lists(fragments, max_size=25).map("".join), at=cuts)
def test_nothing_makes_a_parser_fail_and_pieces_do_not_matter(
    make: Callable[[], MessageParser], text: str, at: list[int]
) -> None:
    whole, _ = run(make(), text, [])
    assert content(run(make(), text, at)[0]) == content(whole)
    assert content(run(make(), text, list(range(len(text))))[0]) == content(whole)


well_formed = st.lists(
    st.tuples(
        st.sampled_from([*sorted(NAMES), "unknown"]),
        st.sampled_from([{}, {"a": 1}, {"b": "</tool_call>"}, {"c": [{"d": '"}'}, None]}, {"e": "\\"}]),
    ),
    min_size=1, max_size=3,
)  # fmt: skip
edits = st.lists(
    st.tuples(
        st.sampled_from(["delete", "insert", "duplicate", "replace", "truncate"]), st.integers(0, 300),
        st.sampled_from([*'{}[]":,<;x\\ \n', "null", '"{}"', "<tool_call>", "</tool_call>", "[TOOL_CALLS]"]),
        st.integers(1, 4),
    ),
    max_size=4,
)  # fmt: skip


def edited(text: str, changes: list[tuple[str, int, str, int]]) -> str:
    for kind, place, new, length in changes:
        at = place % (len(text) + 1)
        before, there, after = text[:at], text[at : at + length], text[at + length :]
        middle = {"delete": "", "insert": new + there, "duplicate": there * 2, "replace": new, "truncate": ""}[kind]
        text = before + middle + (after if kind != "truncate" else "")
    return text


def check_order(parts: list[Part]) -> None:
    """Calls are counted from 0, and arguments follow the begin of their call."""
    num_calls = 0
    for part in parts:
        if isinstance(part, ToolCallBegin):
            assert part.index == num_calls
            num_calls += 1
        elif isinstance(part, ToolCallArguments):
            assert part.index == num_calls - 1
            assert part.text


@pytest.mark.parametrize(("make", "write"), FORMATS, ids=lambda value: value.__name__)
@settings(deadline=None, max_examples=60)
@given(called=st.lists(well_formed, min_size=1, max_size=2), changes=edits, at=cuts)
def test_malformed_calls_are_the_same_message_in_any_pieces(
    make: MakeToolParser,
    write: Write,
    called: list[list[Call]],
    changes: list[tuple[str, int, str, int]],
    at: list[int],
) -> None:
    text = edited("".join(write(each, " ") for each in called), changes)
    whole, parts = run(make(NAMES), text, [])
    check_order(parts)
    for pieces in (at, list(range(len(text)))):
        message, parts = run(make(NAMES), text, pieces)
        check_order(parts)
        assert content(message) == content(whole)
    assert {call.name for call in whole.tool_calls} <= NAMES
    if not changes:
        assert all(isinstance(json.loads(call.arguments), dict) for call in whole.tool_calls)
    assert all(call.arguments.startswith("{") for call in whole.tool_calls)


def test_arguments_are_told_as_they_come() -> None:
    parser = HermesParser(NAMES)
    parser.feed('<tool_call>{"name": "f", "arguments": {"text": "')
    assert parser.feed("half of it") == [ToolCallArguments(0, "half of it")]


def test_a_call_is_told_once_it_is_sure() -> None:
    parser = HermesParser(NAMES)
    assert parser.feed('<tool_call>{"name": "f", "arguments": ') == []
    begin, arguments = parser.feed("{")
    assert isinstance(begin, ToolCallBegin) and arguments == ToolCallArguments(0, "{")
