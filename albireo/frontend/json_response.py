"""JSON over ASGI: answers, and errors in the shape that the path's clients know."""

import msgspec
from starlette.types import Send

from albireo import limits
from albireo.errors import (
    RequestError,
    StoppingError,
    TooManyRequestsError,
    UnavailableError,
    anthropic_error_body,
    error_body,
    is_anthropic,
)

Headers = list[tuple[bytes, bytes]]


async def send_json(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    """A whole response."""
    all_headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: RequestError, path: str, headers: Headers | None = None) -> None:
    """A typed error with its status."""
    headers = headers or []
    if isinstance(error, UnavailableError | TooManyRequestsError):
        headers = [*headers, (b"retry-after", b"%d" % limits.RETRY_AFTER_S)]
    if isinstance(error, StoppingError):
        headers = [*headers, (b"connection", b"close")]
    elif error.status == 401:
        headers = [*headers, (b"www-authenticate", b"Bearer")]
    elif error.status == 413:
        # the rest of the body is still on its way, and nobody will read it
        headers = [*headers, (b"connection", b"close")]
    body = anthropic_error_body(error) if is_anthropic(path) else error_body(error)
    await send_json(send, error.status, msgspec.json.encode(body), headers)
