"""How a chat's output is to be read: which parsers, what they must see, and what the output has to match."""

from collections.abc import Callable, Set
from typing import Literal

import msgspec
from msgspec import Struct

from albireo.config import FrontendConfig
from albireo.errors import RequestError
from albireo.frontend.grammar_fields import requested_grammar
from albireo.frontend.message_parts import MessageParser
from albireo.frontend.output_parsers import hermes, llama_json, mistral, reasoning
from albireo.frontend.output_parsers.call_ids import new_call_id, new_mistral_call_id
from albireo.frontend.output_parsers.json_list import JsonListParser
from albireo.frontend.output_parsers.named_call import NamedCallParser
from albireo.frontend.requests import ChatRequest
from albireo.frontend.tool_fields import ToolUse, calls_grammar, tool_use
from albireo.messages import Grammar

MakeParser = Callable[[], MessageParser]

_TOOL_PARSERS: dict[str, tuple[Callable[[Set[str]], MessageParser], tuple[str, ...]]] = {
    "hermes": (hermes.HermesParser, (hermes.BEGIN, hermes.END)),
    "llama3_json": (llama_json.LlamaJsonParser, (llama_json.PYTHON_TAG,)),
    "mistral": (mistral.MistralParser, (mistral.BEGIN, mistral.CALL_ID, mistral.ARGS)),
}
"""By --tool-call-parser, of the tools' names; `qwen` writes as Hermes does. And the markers, which may be special
tokens."""


class MessageParsing(Struct, frozen=True):
    """One request's."""

    make: MakeParser
    """A parser for each of its sequences."""
    shown: frozenset[str] = frozenset()
    """Special tokens that the parser must see, and no client."""
    grammar: Grammar | None = None
    reads_reasoning: bool = False
    """Whether the tokens of the reasoning are to be counted."""
    ends_with_calls: bool = True
    """A message with calls has the finish reason `tool_calls`; a named call's is `stop`, as at OpenAI."""


def message_parsing(request: ChatRequest, config: FrontendConfig, prompt_end: str) -> MessageParsing | None:
    """None where the output is plain text, and nothing constrains it but what the request's own fields say.

    `prompt_end`: as of `ChatPrompt.end`, which tells whether the reasoning has begun. Raises RequestError."""
    use = tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
    make, shown, grammar = _tool_parser(request, use, config)
    ends_with_calls = use is None or use.choice != "named"
    state = _reasoning_state(config.reasoning_parser, prompt_end, bool(request.continue_final_message))
    if state == "over":
        return None if make is None else MessageParsing(make, shown, grammar, ends_with_calls=ends_with_calls)
    inner = make or reasoning.PlainText
    inside = state == "inside"
    grammar = grammar or requested_grammar(request.response_format, request.structured_outputs)
    if grammar is not None:
        opened_by = "" if inside else reasoning.BEGIN
        grammar = msgspec.structs.replace(grammar, after=reasoning.END, opened_by=opened_by)
    shown |= {reasoning.BEGIN, reasoning.END}
    return MessageParsing(lambda: reasoning.ReasoningParser(inner(), inside), shown, grammar, True, ends_with_calls)


def _reasoning_state(parser: str | None, prompt_end: str, continues: bool) -> Literal["inside", "over", "undecided"]:
    """Where the output begins: inside of the reasoning, behind it (or where there is none), or as the model likes."""
    if parser is None:
        return "over"
    end = prompt_end.rstrip()
    if end.endswith(reasoning.END) or (continues and reasoning.END in end):
        return "over"
    if end.endswith(reasoning.BEGIN) or (continues and reasoning.BEGIN in end):
        return "inside"
    return "inside" if parser == "deepseek_r1" and not continues else "undecided"


def _tool_parser(
    request: ChatRequest, use: ToolUse | None, config: FrontendConfig
) -> tuple[MakeParser | None, frozenset[str], Grammar | None]:
    if use is None or use.choice == "none":
        return None, frozenset(), None
    names = {tool.function.name for tool in use.tools}
    constrained = requested_grammar(request.response_format, request.structured_outputs) is not None
    if use.choice == "auto":
        if not config.enable_auto_tool_choice or config.tool_call_parser is None:
            field = "tool_choice"
            raise RequestError(
                f"{field}: auto, which is the default, needs a server started with --enable-auto-tool-choice and "
                "--tool-call-parser; a choice that makes the model call a tool does not",
                field=field,
            )
        if constrained:
            return None, frozenset(), None
        make, markers = _TOOL_PARSERS[config.tool_call_parser]
        return (lambda: make(names)), frozenset(markers), None
    if constrained:
        raise RequestError("tool_choice demands a call, and another field constrains the output too", "tool_choice")
    new_id = new_mistral_call_id if config.tool_call_parser == "mistral" else new_call_id
    if use.choice == "required":
        return (lambda: JsonListParser(names, new_id=new_id)), frozenset(), calls_grammar(use)
    name = use.name or ""
    return (lambda: NamedCallParser(name, new_id)), frozenset(), calls_grammar(use)
