"""Reading a request's body: JSON by declaration, and never more than MAX_BODY_BYTES of it."""

from contextvars import ContextVar

from starlette.types import Receive, Scope

from albireo import limits
from albireo.errors import BodyTooLargeError, RequestError, TooManyRequestsError, UnsupportedMediaTypeError
from albireo.frontend.output import ClientGoneError

_TOO_LARGE = f"the body must have at most {limits.MAX_BODY_BYTES} bytes"


class _Large:
    """The large bodies that this process is reading. On the event loop alone."""

    num_bytes = 0
    """Without the first SMALL_BODY_BYTES of each."""

    def add(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes


_large = _Large()
_num_large: ContextVar[int] = ContextVar("num_large", default=0)


def num_large_bytes() -> int:
    """What the body that this task has read has beyond its first SMALL_BODY_BYTES."""
    return _num_large.get()


async def read_json_body(scope: Scope, receive: Receive) -> bytes:
    """The body's bytes. Raises RequestError, or ClientGoneError when the client leaves before its end."""
    headers = dict(scope["headers"])
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise UnsupportedMediaTypeError("the Content-Type must be application/json")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise RequestError("the Content-Length must be a number")
    if len(length) > 18 or int(length) > limits.MAX_BODY_BYTES:
        raise BodyTooLargeError(_TOO_LARGE)
    pieces: list[bytes] = []
    size = num_large = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            size += len(piece)
            if size > limits.MAX_BODY_BYTES:
                raise BodyTooLargeError(_TOO_LARGE)
            pieces.append(piece)
            if not message.get("more_body", False):
                _num_large.set(max(0, size - limits.SMALL_BODY_BYTES))
                return b"".join(pieces)
            grown = max(0, size - limits.SMALL_BODY_BYTES) - num_large
            num_large += grown
            _large.add(grown)
            if num_large and _large.num_bytes > limits.MAX_LARGE_BODIES_BYTES:
                raise TooManyRequestsError("other requests with large bodies are being read; send it again in a moment")
    finally:
        _large.add(-num_large)
