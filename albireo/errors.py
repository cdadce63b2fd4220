"""Typed errors and the one table that maps them to HTTP statuses and OpenAI error bodies.

A leaf. Messages of `RequestError` are shown to clients: they name the field and the bound and hold nothing internal.
"""

from msgspec import Struct


class RequestError(Exception):
    """What a client got wrong. `field` is the request field's path, e.g. `messages[1].role`."""

    status = 400
    error_type = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code


class AuthenticationError(RequestError):
    """No API key, or one that is not ours."""

    status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"


class NotFoundError(RequestError):
    """No such route or model."""

    status = 404
    error_type = "not_found_error"


class MethodNotAllowedError(RequestError):
    """The route exists and has no such method."""

    status = 405


class RequestTimeoutError(RequestError):
    """The request has not come within limits.HEAD_TIMEOUT_S, or its body within limits.REQUEST_TIMEOUT_S."""

    status = 408
    error_type = "request_timeout"


class BodyTooLargeError(RequestError):
    """More bytes than limits.MAX_BODY_BYTES."""

    status = 413
    error_type = "request_too_large"


class HeadersTooLargeError(RequestError):
    """More bytes than limits.MAX_HEADER_BYTES."""

    status = 431
    error_type = "request_too_large"


class UnsupportedMediaTypeError(RequestError):
    """The body is not declared as JSON. A browser's cross-site form post cannot set that type without asking first."""

    status = 415


class TooManyRequestsError(RequestError):
    """As many as there is room for are under way; the answer carries Retry-After."""

    status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UnavailableError(RequestError):
    """Starting, stopping or full; the answer carries Retry-After."""

    status = 503
    error_type = "service_unavailable"


class QueueTimeoutError(UnavailableError):
    """It has waited for its first step for --queue-timeout; the answer carries Retry-After."""

    code = "queue_timeout"


class StoppingError(UnavailableError):
    """The server ends; the answer closes its connection, since the next request on it would be lost."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class TooManyConnectionsError(UnavailableError):
    """As many clients as the process has file descriptors for, and each has a request."""

    def __init__(self) -> None:
        super().__init__("the server has as many connections as it can, and none is idle")


class InternalError(RequestError):
    """Our fault. The client sees a fixed text and the request id; the log has the rest."""

    status = 500
    error_type = "internal_error"


class ErrorDetail(Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct, frozen=True):
    """OpenAI's error response."""

    error: ErrorDetail


class AnthropicErrorDetail(Struct, frozen=True):
    """Anthropic's error object."""

    type: str
    message: str


class AnthropicErrorBody(Struct, frozen=True, tag_field="type", tag="error"):
    """Anthropic's error response."""

    error: AnthropicErrorDetail


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
"""By status; others are `invalid_request_error`."""


def anthropic_error_body(error: RequestError) -> AnthropicErrorBody:
    type_ = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return AnthropicErrorBody(AnthropicErrorDetail(type_, error.message))


def is_anthropic(path: str) -> bool:
    """Whether a path's clients expect errors in Anthropic's shape."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_body(error: RequestError) -> ErrorBody:
    return ErrorBody(ErrorDetail(error.message, error.error_type, error.field, error.code))


class StartupError(Exception):
    """The server cannot start: one line that says why and what to do. The supervisor exits with `exit_code`."""

    def __init__(self, message: str, exit_code: int = 3) -> None:
        super().__init__(message)
        self.exit_code = exit_code
