"""API keys: every route but the probes is denied without one. ASGI middleware.

The decision looks at the path that routing will look at (`scope["path"]`), never at a header that a client may set
(vLLM CVE-2026-48746), and takes the same time for any wrong key (CVE-2025-59425).
"""

import hashlib
from collections.abc import Collection, Sequence
from hmac import compare_digest

from starlette.types import ASGIApp, Receive, Scope, Send

from albireo.errors import AuthenticationError

OPEN_PATHS = frozenset({"/health", "/live", "/ready"})


class ApiKeys:
    """The keys that are valid now; without any, every request is."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.replace(keys)

    def replace(self, keys: Sequence[str]) -> None:
        """From the next request on. What runs was let in, and goes on."""
        self._digests = [_digest(key.encode()) for key in keys]

    @property
    def is_open(self) -> bool:
        """There are none."""
        return not self._digests

    def allow(self, key: bytes) -> bool:
        """In the same time for every key that is none."""
        digest = _digest(key)
        matches = 0
        for known in self._digests:  # all of them, whichever matches
            matches += compare_digest(digest, known)
        return matches > 0


class ApiKeyMiddleware:
    """Raises AuthenticationError for a request without a valid `Authorization: Bearer` header, or `x-api-key`, which is
    Anthropic's."""

    def __init__(self, app: ASGIApp, api_keys: ApiKeys, open_paths: Collection[str] = OPEN_PATHS) -> None:
        """`open_paths` need no key."""
        self._app = app
        self._open_paths = frozenset(open_paths)
        self._api_keys = api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = scope["path"].removeprefix(scope.get("root_path", ""))
        if route not in self._open_paths and not self._is_authorised(scope):
            raise AuthenticationError("a valid API key is needed: Authorization: Bearer KEY")
        await self._app(scope, receive, send)

    def _is_authorised(self, scope: Scope) -> bool:
        if self._api_keys.is_open:
            return True
        headers = dict(scope["headers"])
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = headers.get(b"x-api-key", b"")
        return self._api_keys.allow(key.strip())


def _digest(key: bytes) -> bytes:
    """Of one length for every key: comparing the keys themselves would tell theirs."""
    return hashlib.sha256(key).digest()
