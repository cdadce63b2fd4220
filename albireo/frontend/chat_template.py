"""The server's chat template: jinja2 in an immutable sandbox, with what transformers offers to templates.

A client supplies messages and scalar variables that the template knows, never template text. Advisories on templates
that clients could supply or steer: CVE-2025-61620, CVE-2025-62426, CVE-2026-5760.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from albireo.errors import RequestError, StartupError

logger = logging.getLogger(__name__)

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})


class ChatTemplate:
    """A compiled template. Rendering has no side effects and may happen on any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: `bos_token` and the like, which templates write. Raises StartupError for bad syntax."""
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise StartupError(f"the chat template does not compile: line {error.lineno}: {error.message}") from error
        self._special_tokens = dict(special_tokens)
        reserved = _RESERVED | self._special_tokens.keys() | environment.globals.keys()
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree) - reserved)
        """Names that `chat_template_kwargs` may set: those that the template reads and nothing else defines."""
        texts = [node.data for node in tree.find_all(nodes.TemplateData)]
        texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        self.text = "\0".join(texts)
        """Everything that the template can write by itself."""
        self.knows_developer = "developer" in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt's text. Raises RequestError when the template refuses the messages or cannot render them."""
        try:
            return self._template.render(
                {
                    **self._special_tokens,
                    **variables,
                    "messages": messages,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except _TemplateRefusal as error:
            raise RequestError(f"messages: the chat template refuses them: {error}", field="messages") from error
        except Exception as error:
            # whatever the template trips over, the messages made it; its details are the operator's business
            logger.warning("the chat template failed: %r", error)
            raise RequestError("messages: the chat template cannot render them", field="messages") from error


def find_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The checkpoint's template: chat_template.jinja, or `chat_template` in tokenizer_config.json, which is a text
    or a list of named ones, of which we take `default`. Raises StartupError for a file that is no text."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise StartupError(f"{path} is not UTF-8 text") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


class _TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model wrote, for training. Serving renders its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance's)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML, which prompts are not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _TemplateRefusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
