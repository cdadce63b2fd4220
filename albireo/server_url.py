"""What names a server to our own clients: an http or https URL, or `http+unix:PATH` as a server on a Unix socket calls
itself. A leaf.
"""

from urllib.parse import SplitResult, urlsplit

_UNIX_SCHEMES = ("http+unix:", "https+unix:")


def url_problem(url: str) -> str | None:
    """Why this is none, to follow the flag's name; None for one that may be tried."""
    if url.startswith(("http://", "https://")):
        return None
    if url.startswith(_UNIX_SCHEMES):
        return None if split_url(url)[1] else f"needs the socket's path behind {url!r}"
    return f"must start with http://, https:// or http+unix:, not {url!r}"


def split_url(url: str) -> tuple[SplitResult, str | None]:
    """The URL that requests are for, and the path of the Unix socket that they go through, if it is one. A path that
    begins with `@` is in the abstract namespace (unix(7))."""
    scheme = next((scheme for scheme in _UNIX_SCHEMES if url.startswith(scheme)), None)
    if scheme is None:
        return urlsplit(url), None
    path = url.removeprefix(scheme)
    path = path[path.startswith("//") and 2 :]  # http+unix:///run/x.sock is the same
    return urlsplit(f"{scheme.split('+')[0]}://localhost"), "\0" + path[1:] if path.startswith("@") else path
