"""Tool calls and reasoning in every format: cut into whatever pieces, the same message comes out."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.frontend.message_parts import Message, MessageParser, Part, whole_message
from albireo.frontend.output_parsers.hermes import HermesParser
from albireo.frontend.output_parsers.json_list import JsonListParser
from albireo.frontend.output_parsers.llama_json import LlamaJsonParser
from albireo.frontend.output_parsers.mistral import MistralParser
from albireo.frontend.output_parsers.named_call import NamedCallParser
from albireo.frontend.output_parsers.reasoning import PlainText, ReasoningParser

Call = tuple[str, dict[str, Any]]

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


def json_list(called: list[Call], space: str) -> str:
    return json.dumps([{"name": name, "parameters": values} for name, values in called], indent=len(space) or None)


FORMATS: list[tuple[Callable[[], MessageParser], Callable[[list[Call], str], str]]] = [
    (HermesParser, hermes), (HermesParser, hermes_turned), (LlamaJsonParser, llama), (LlamaJsonParser, llama_tagged),
    (MistralParser, mistral_list), (MistralParser, mistral_names), (JsonListParser, json_list),
]  # fmt: skip


@pytest.mark.parametrize(("make", "write"), FORMATS, ids=lambda value: value.__name__)
@settings(deadline=None)
@given(called=calls, space=st.sampled_from(["", " ", "\n"]), at=cuts)
def test_calls_come_out_as_they_were_written(
    make: Callable[[], MessageParser], write: Callable[[list[Call], str], str], called: list[Call], space: str,
    at: list[int],
) -> None:  # fmt: skip
    message, _ = run(make(), write(called, space), at)
    assert [(call.name, json.loads(call.arguments)) for call in message.tool_calls] == called
    assert message.text.strip() == ""
    assert len({call.id for call in message.tool_calls}) == len(called)


@settings(deadline=None)
@given(before=prose, called=calls, after=prose, at=cuts)
def test_text_around_hermes_calls_stays(before: str, called: list[Call], after: str, at: list[int]) -> None:
    message, _ = run(HermesParser(), before + hermes(called, "\n") + after, at)
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
        run(ReasoningParser(HermesParser(), False), "<think>a</think>" + hermes([("f", {})], ""), [5, 20])[0]
        .tool_calls[0]
        .name
        == "f"
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (HermesParser, "<tool_call>no json</tool_call>"), (HermesParser, '<tool_call>{"name": 5}</tool_call>'),
        (HermesParser, "a <tool_cal"), (HermesParser, '<tool_call>{"arguments": {"a": 1}}</tool_call> b'),
        (LlamaJsonParser, '{"a": 1}'), (LlamaJsonParser, "{not json"), (LlamaJsonParser, "plain {"),
        (MistralParser, "[TOOL_CALLS]"), (MistralParser, "[TOOL"), (JsonListParser, "plain"), (JsonListParser, "[{"),
    ],
)  # fmt: skip
def test_what_is_no_call_is_text(make: Callable[[], MessageParser], text: str) -> None:
    for at in range(len(text) + 1):
        message, _ = run(make(), text, [at, at + 3])
        assert message.text == text
        assert not message.tool_calls


@pytest.mark.parametrize(
    ("make", "text"),
    [(JsonListParser, '[{"name": "f", "parameters": '), (MistralParser, '[TOOL_CALLS] [{"name": "f", "arguments": {')],
)
def test_a_call_that_was_cut_off_leaves_no_bracket_as_text(make: Callable[[], MessageParser], text: str) -> None:
    for at in range(len(text) + 1):
        message, _ = run(make(), text, [at])
        assert message.text == ""
        assert [call.name for call in message.tool_calls] == ["f"]


ALL: list[Callable[[], MessageParser]] = [
    HermesParser, LlamaJsonParser, MistralParser, JsonListParser, lambda: NamedCallParser("f"),
    lambda: ReasoningParser(HermesParser(), False), lambda: ReasoningParser(MistralParser(), True),
]  # fmt: skip
fragments = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[", "]", "{", "}", '"name"', ":", '"f"', ",", "<think>",
     "</think>", '"arguments"', '"parameters"', "{}", "<|python_tag|>", ";", " ", "\n", "\\", '"', "x", "<", "1"]
)  # fmt: skip


@pytest.mark.parametrize("make", ALL)
@settings(deadline=None, max_examples=200)
@given(text=st.lists(fragments, max_size=25).map("".join), at=cuts)
def test_nothing_makes_a_parser_fail_and_pieces_do_not_matter(
    make: Callable[[], MessageParser], text: str, at: list[int]
) -> None:
    def content(message: Message) -> tuple[Any, ...]:
        return message.text, message.reasoning, [(call.name, call.arguments) for call in message.tool_calls]

    whole, _ = run(make(), text, [])
    assert content(run(make(), text, at)[0]) == content(whole)
    assert content(run(make(), text, list(range(len(text))))[0]) == content(whole)


def test_arguments_are_told_as_they_come() -> None:
    parser = HermesParser()
    parser.feed('<tool_call>{"name": "f", "arguments": {"text": "')
    parts = parser.feed("half of it")
    assert (
        whole_message([*HermesParser().feed('<tool_call>{"name": "f"'), *parts]).tool_calls[0].arguments == "half of it"
    )
