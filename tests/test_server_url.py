import pytest

from albireo.server_url import split_url, url_problem


def test_an_http_url_is_what_it_is() -> None:
    url, path = split_url("https://gpu-box:8443/prefix")
    assert (url.scheme, url.hostname, url.port, url.path, path) == ("https", "gpu-box", 8443, "/prefix", None)


@pytest.mark.parametrize(
    ("text", "scheme", "path"),
    [
        ("http+unix:/run/a.sock", "http", "/run/a.sock"),
        ("https+unix:/run/a.sock", "https", "/run/a.sock"),
        ("http+unix:///run/a.sock", "http", "/run/a.sock"),
        ("http+unix:here.sock", "http", "here.sock"),
        ("http+unix:@albireo", "http", "\0albireo"),
    ],
)
def test_a_unix_socket_stands_for_a_host_of_its_own(text: str, scheme: str, path: str) -> None:
    url, found = split_url(text)
    assert (url.scheme, url.netloc, url.path, found) == (scheme, "localhost", "", path)
    assert url_problem(text) is None


@pytest.mark.parametrize("text", ["localhost:8000", "", "unix:/run/a.sock", "http+unix:", "https+unix://"])
def test_what_names_no_server_is_told(text: str) -> None:
    assert url_problem(text) is not None
