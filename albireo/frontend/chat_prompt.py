"""A chat request's messages -> the chat template -> token ids."""

from functools import partial
from typing import Any, Final

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.chat_messages import map_strings, plain_message, strings_in
from albireo.frontend.chat_template import ChatTemplate
from albireo.frontend.control_tokens import take_out, unused_characters
from albireo.frontend.deadline import Deadline, DeadlineExceeded
from albireo.frontend.requests import ChatRequest
from albireo.frontend.tokenizer import Tokenizer
from albireo.frontend.tool_fields import template_tools, tool_use

PROMPT_END_CHARS: Final = 64
"""How much of the rendered prompt is kept to see how it ends, where that is no message of the client's."""


class ChatPrompt:
    """One request's conversation, checked and ready to be rendered."""

    def __init__(self, request: ChatRequest, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        """Raises RequestError for what the messages hold that we cannot render."""
        use = tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
        self._tools = None if use is None or use.choice == "none" else template_tools(use)
        self.end = ""
        """What the output goes on from: the final message, where that is continued, or else the last characters of the
        rendered text, once it is."""
        self._template = template
        self._tokenizer = tokenizer
        self._messages = [plain_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)]
        self._variables = _variables(request, template)
        self._continues = bool(request.continue_final_message)
        if self._continues and request.add_generation_prompt:
            field = "add_generation_prompt"
            raise RequestError(f"{field} and continue_final_message must not both be true", field=field)
        self._adds_prompt = not self._continues and request.add_generation_prompt is not False

    def encode(self, deadline: Deadline) -> list[int]:
        """Renders and encodes; on a worker thread."""
        try:
            with deadline:
                text, mark = self._render()
        except DeadlineExceeded:
            raise RequestError(
                f"messages: the chat template took longer than {limits.TEMPLATE_TIMEOUT_S} s", field="messages"
            ) from None
        return self._tokenizer.encode_chat(text, mark, "messages")

    def _render(self) -> tuple[str, str]:
        """The prompt's text with the mark at its cuts (see control_tokens), and the mark."""
        given = (self._messages, self._variables, self._tools)
        mark, end = unused_characters([*strings_in(given), self._template.text], 2)
        control = self._tokenizer.control
        by_model = partial(control.cut, mark=mark, by_model=True)
        by_user = partial(control.cut, mark=mark, by_model=False)
        messages = [
            {"role": message["role"]}
            | {
                key: map_strings(value, by_model if message["role"] == "assistant" else by_user)
                for key, value in message.items()
                if key != "role"
            }
            for message in self._messages
        ]
        variables, tools = map_strings(self._variables, by_user), map_strings(self._tools, by_user)
        for message in messages:
            if message["role"] == "developer" and not self._template.knows_developer:
                message["role"] = "system"
        if self._continues:
            messages[-1]["content"] += end + " "
        text = self._template.render(messages, self._adds_prompt, variables, tools)
        text = _before_end(text, end) if self._continues else text
        continued = self._messages[-1]["content"].strip() if self._continues else ""
        self.end = continued or take_out(text[-PROMPT_END_CHARS:], mark)[0]
        return text, mark


def _before_end(text: str, end: str) -> str:
    """The text up to the end of the final message. If the template trims messages, it trimmed the space behind the
    end mark, and the message's own trailing white space goes too (as transformers has it)."""
    body, found, rest = text.rpartition(end)
    if not found:
        field = "continue_final_message"
        raise RequestError(f"{field}: the chat template does not show the final message", field=field)
    return body if rest.startswith(" ") else body.rstrip()


def _variables(request: ChatRequest, template: ChatTemplate) -> dict[str, Any]:
    """`chat_template_kwargs`, if the template reads them all."""
    variables: dict[str, Any] = dict(request.chat_template_kwargs or {})
    for name in variables:
        if name not in template.variables:
            field = f"chat_template_kwargs.{name[: limits.MAX_ECHO_CHARS]}"
            known = ", ".join(sorted(template.variables)) or "none"
            raise RequestError(f"{field} is not a variable of this model's chat template (it has: {known})", field)
    if request.reasoning_effort is not None:
        if "reasoning_effort" not in template.variables:
            field = "reasoning_effort"
            raise RequestError(f"{field} is nothing that this model's chat template knows", field=field)
        variables["reasoning_effort"] = request.reasoning_effort
    return variables
