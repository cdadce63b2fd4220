"""A chat request's messages -> the chat template -> token ids."""

from typing import Any

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.chat_template import ChatTemplate
from albireo.frontend.control_tokens import unused_characters
from albireo.frontend.deadline import Deadline, DeadlineExceeded
from albireo.frontend.requests import ChatMessage, ChatRequest, refuse_unsupported
from albireo.frontend.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant")


class ChatPrompt:
    """One request's conversation, checked and ready to be rendered."""

    def __init__(self, request: ChatRequest, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        """Raises RequestError for what the messages hold that we cannot render."""
        self._template = template
        self._tokenizer = tokenizer
        self._messages = [_plain_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)]
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
        texts = [text for message in self._messages for text in message.values()]
        texts += [value for value in self._variables.values() if isinstance(value, str)]
        mark, end = unused_characters([*texts, self._template.text], 2)
        control = self._tokenizer.control
        messages = [
            {
                key: text if key == "role" else control.cut(text, mark, by_model=message["role"] == "assistant")
                for key, text in message.items()
            }
            for message in self._messages
        ]
        variables = {
            key: control.cut(value, mark, by_model=False) if isinstance(value, str) else value
            for key, value in self._variables.items()
        }
        for message in messages:
            if message["role"] == "developer" and not self._template.knows_developer:
                message["role"] = "system"
        if self._continues:
            messages[-1]["content"] += end + " "
        text = self._template.render(messages, self._adds_prompt, variables)
        return (_before_end(text, end) if self._continues else text), mark


def _before_end(text: str, end: str) -> str:
    """The text up to the end of the final message. If the template trims messages, it trimmed the space behind the
    end mark, and the message's own trailing white space goes too (as transformers has it)."""
    body, found, rest = text.rpartition(end)
    if not found:
        field = "continue_final_message"
        raise RequestError(f"{field}: the chat template does not show the final message", field=field)
    return body if rest.startswith(" ") else body.rstrip()


def _plain_message(message: ChatMessage, path: str) -> dict[str, str]:
    """What the template sees of a message: role, content as one text, and the name where there is one."""
    if message.role in ("tool", "function"):
        raise RequestError(f"{path}.role: {message.role} messages are not supported", field=f"{path}.role")
    if message.role not in ROLES:
        raise RequestError(f"{path}.role must be one of {', '.join(ROLES)}", field=f"{path}.role")
    refuse_unsupported(message, f"{path}.")
    if message.content is None:
        raise RequestError(f"{path}.content is missing", field=f"{path}.content", code="missing_required_parameter")
    plain = {"role": message.role, "content": _content_text(message, path)}
    return plain if message.name is None else plain | {"name": message.name}


def _content_text(message: ChatMessage, path: str) -> str:
    """Parts are joined by line ends, as vLLM does for templates that want a text."""
    if not isinstance(message.content, list):
        return message.content or ""
    texts = []
    for index, part in enumerate(message.content):
        field = f"{path}.content[{index}]"
        if part.type != "text":
            raise RequestError(f"{field}.type must be text: this server takes no other parts", field=f"{field}.type")
        refuse_unsupported(part, f"{field}.")
        if part.text is None:
            raise RequestError(f"{field}.text is missing", field=f"{field}.text", code="missing_required_parameter")
        texts.append(part.text)
    return "\n".join(texts)


def _variables(request: ChatRequest, template: ChatTemplate) -> dict[str, Any]:
    """`chat_template_kwargs`, if the template reads them all."""
    variables = request.chat_template_kwargs or {}
    for name in variables:
        if name not in template.variables:
            field = f"chat_template_kwargs.{name[: limits.MAX_ECHO_CHARS]}"
            known = ", ".join(sorted(template.variables)) or "none"
            raise RequestError(f"{field} is not a variable of this model's chat template (it has: {known})", field)
    return variables
