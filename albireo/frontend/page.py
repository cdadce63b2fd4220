"""The web page at `/`: plain files, read once at the start and served from memory.

It is public like the probes, since it holds nothing: all that it shows it asks for with the user's API key. It needs
nothing from elsewhere and runs no script but its own, and the headers hold it to that. No file is opened by a
client's name for it (starlette: CVE-2025-62727, CVE-2026-48817).
"""

import hashlib
from pathlib import Path
from typing import Final

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from albireo.frontend.json_response import Headers

FOLDER: Final = Path(__file__).parent / "web_page"
INDEX: Final = "index.html"
_TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # asked for again each time, and answered with 304: after an upgrade no part of the page is of the old one
    (b"cache-control", b"no-cache"),
)


class PageFile:
    """ASGI endpoint: one file, for GET and HEAD."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._tag = b'"%b"' % hashlib.sha256(self._body).hexdigest()[:32].encode()
        self._type = _TYPES[path.suffix]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = [(b"etag", self._tag), *_HEADERS]
        known = next((value for name, value in scope["headers"] if name == b"if-none-match"), b"")
        if self._tag in known:
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        headers += [(b"content-type", self._type), (b"content-length", b"%d" % len(self._body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self._body})


def page_routes() -> list[Route]:
    """The page at `/`, and what belongs to it under `/page/`. Each path is one file: the list is fixed at the start."""
    paths = sorted(path for path in FOLDER.iterdir() if path.suffix in _TYPES)
    return [
        Route("/" if path.name == INDEX else f"/page/{path.name}", PageFile(path), methods=["GET"]) for path in paths
    ]
