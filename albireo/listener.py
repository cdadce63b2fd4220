"""Where the server listens: a TCP port or a Unix socket, opened by the supervisor before anything else starts, or the
socket that systemd started it with."""

import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from albireo.config import PassedSockets, take_passed_sockets
from albireo.errors import StartupError


class ListenAddress(Struct, frozen=True):
    """As of the flags."""

    host: str
    port: int
    uds: str | None = None
    """Path of a Unix socket, in place of host and port."""
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None


class Listener(Struct, frozen=True):
    """An open one."""

    socket: socket.socket
    host: str
    """`unix:PATH` for a Unix socket, whose port is 0."""
    port: int
    url: str
    is_passed: bool = False
    """systemd opened it: the address is not the flags'."""

    @property
    def description(self) -> str:
        """The URL, and what else the line that says that the server is ready should say of it."""
        note = " (socket passed by systemd; --host, --port and --uds do not apply)"
        return self.url + (note if self.is_passed else "")


@contextmanager
def listening(address: ListenAddress) -> Iterator[Listener]:
    """The HTTP socket, closed at the end. A socket that this process was started with (sd_listen_fds(3)) takes the
    place of the address. Raises StartupError when there is none to be had, or no certificate."""
    passed = take_passed_sockets()
    scheme = check_certificate(address)
    if passed.fds:
        with _take_passed(passed) as taken:
            yield _describe(taken, scheme, is_passed=True)
        return
    if address.uds is not None:
        with _open_unix(address.uds) as opened:
            try:
                yield _describe(opened, scheme)
            finally:
                with contextlib.suppress(OSError):
                    Path(address.uds).unlink()
        return
    with _open_tcp(address.host, address.port) as opened:
        yield _describe(opened, scheme)


def _describe(opened: socket.socket, scheme: str, is_passed: bool = False) -> Listener:
    if opened.family == socket.AF_UNIX:
        name = opened.getsockname()
        path = "@" + os.fsdecode(name[1:]) if isinstance(name, bytes) else name  # bytes: the abstract namespace
        return Listener(opened, f"unix:{path}", 0, f"{scheme}+unix:{path}", is_passed)
    host, port = opened.getsockname()[:2]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Listener(opened, host, port, f"{scheme}://{where}", is_passed)


def _take_passed(passed: PassedSockets) -> socket.socket:
    if len(passed.fds) > 1:
        names = ", ".join(passed.names)
        raise StartupError(
            f"{len(passed.fds)} sockets were passed ({names}) and one is served; "
            "leave one ListenStream= in albireo.socket"
        )
    fd, name = passed.fds[0], passed.names[0]
    advice = "albireo.socket needs ListenStream= and Accept=no"
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
    except OSError as error:
        raise StartupError(f"descriptor {fd} ({name}) is not a socket; {advice}") from error
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    is_listening = taken.type == socket.SOCK_STREAM and taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if taken.family not in families or not is_listening:
        taken.close()
        raise StartupError(f"the passed socket ({name}) is not a stream socket that listens; {advice}")
    return taken


def check_certificate(address: ListenAddress) -> str:
    """`https` or `http`. Raises StartupError for files that make no certificate."""
    if address.ssl_certfile is None and address.ssl_keyfile is None:
        return "http"
    if address.ssl_certfile is None:
        raise StartupError("--ssl-keyfile needs --ssl-certfile", exit_code=2)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # a key with a password would ask for it at the terminal
        context.load_cert_chain(address.ssl_certfile, address.ssl_keyfile, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        files = " and ".join(path for path in (address.ssl_certfile, address.ssl_keyfile) if path)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StartupError(f"cannot use {files} for TLS: {reason}") from error
    return "https"


def _open_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as error:
        raise StartupError(
            f"cannot listen on {host}: {error.strerror}; name an address of this machine with --host"
        ) from error
    except OSError as error:
        # create_server's own strerror repeats the address
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StartupError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from error


def _open_unix(path: str) -> socket.socket:
    """A socket file that nobody listens on any more is replaced; anything else at its place is left alone."""
    opened = socket.socket(socket.AF_UNIX)
    try:
        if _is_abandoned(path):
            Path(path).unlink()
        opened.bind(path)
        opened.listen(2048)
    except OSError as error:
        opened.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StartupError(f"cannot listen on {path}: {reason}; choose another with --uds") from error
    return opened


def _is_abandoned(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        return False
