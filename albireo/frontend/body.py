"""Reading a request's body: JSON by declaration, and never more than MAX_BODY_BYTES of it."""

from starlette.types import Receive, Scope

from albireo import limits
from albireo.errors import BodyTooLargeError, RequestError, UnsupportedMediaTypeError
from albireo.frontend.output import ClientGoneError

_TOO_LARGE = f"the body must have at most {limits.MAX_BODY_BYTES} bytes"


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
    size = 0
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
            return b"".join(pieces)
