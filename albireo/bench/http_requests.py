"""The HTTP requests of a run, built whole before it starts so that sending one is a single write."""

from collections.abc import Mapping

import msgspec

from albireo.bench.prompts import Prompt
from albireo.bench.settings import ServeBenchSettings


def completion_body(settings: ServeBenchSettings, model: str, prompt: Prompt) -> bytes:
    """JSON body of one streamed request to the settings' backend; sampling fields that were not given are left out."""
    body: dict[str, object] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if settings.backend == "openai-chat":
        body["messages"] = [{"role": "user", "content": prompt.text}]
        body["max_completion_tokens"] = settings.output_len_of(prompt)
    else:
        body["prompt"] = prompt.ids if settings.prompt_format == "ids" else prompt.text
        body["max_tokens"] = settings.output_len_of(prompt)
    if settings.ignore_eos:
        body["ignore_eos"] = True
    for name in ("temperature", "top_p", "top_k", "min_p"):
        value = getattr(settings, name)
        if value is not None:
            body[name] = value
    return msgspec.json.encode(body | settings.extra_body)


def http_request(method: str, path: str, host: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A whole HTTP/1.1 request; `headers` override the ones it would have by itself."""
    fields = {"Host": host, "Accept": "*/*", "Content-Length": str(len(body))}
    if body:
        fields["Content-Type"] = "application/json"
    given = {name.lower() for name in headers}
    fields = {name: value for name, value in fields.items() if name.lower() not in given} | dict(headers)
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode("latin-1") + b"\r\n" + body
