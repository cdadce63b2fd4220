"""The files that make a systemd service, from the templates beside this module. Pure: nothing is written here."""

import ipaddress
from pathlib import Path

from msgspec import Struct

from albireo.errors import StartupError

TEMPLATES = Path(__file__).parent / "templates"
DESTINATIONS = {
    "albireo.service": "/etc/systemd/system/albireo.service",
    "albireo.socket": "/etc/systemd/system/albireo.socket",
    "albireo.sysusers": "/etc/sysusers.d/albireo.conf",
    "albireo.tmpfiles": "/etc/tmpfiles.d/albireo.conf",
    "albireo.env": "/etc/albireo/albireo.env",
}
"""Where each template's file belongs."""

STOP_MARGIN_S = 25
"""What TimeoutStopSec= has beyond --shutdown-timeout: the processes' own ends, and a busy machine."""
WATCHDOG_MARGIN_S = 30
"""What WatchdogSec= has beyond --worker-timeout."""


class ServiceSettings(Struct, frozen=True):
    """What differs between two installations."""

    executable: tuple[str, ...] = ("/opt/albireo/bin/albireo-run",)
    """The command and its first arguments, before `serve`."""
    serve_flags: tuple[str, ...] = ()
    user: str = "albireo"
    listen: str = "127.0.0.1:8000"
    """The socket unit's ListenStream=."""
    shutdown_timeout_s: int = 5
    worker_timeout_s: int = 30
    needs_home: bool = False
    """The program or the model lies where ProtectHome=yes would hide it."""


def render(settings: ServiceSettings) -> dict[str, str]:
    """Text of every file, by its template's name."""
    command = (*settings.executable, "serve", "--env-file", DESTINATIONS["albireo.env"], *settings.serve_flags)
    values = {
        "@EXEC_START@": " ".join(map(quote, command)),
        "@USER@": settings.user,
        "@LISTEN@": settings.listen.replace("%", "%%"),
        "@TIMEOUT_STOP_S@": str(settings.shutdown_timeout_s + STOP_MARGIN_S),
        "@WATCHDOG_S@": str(settings.worker_timeout_s + WATCHDOG_MARGIN_S),
        "@PROTECT_HOME@": "read-only" if settings.needs_home else "yes",
    }
    return {name: _fill((TEMPLATES / name).read_text(encoding="utf-8"), values) for name in DESTINATIONS}


def quote(word: str) -> str:
    """A word of a command line as ExecStart= takes it (systemd.service(5), "Command lines"). Raises StartupError for
    a control character."""
    if any(ord(character) < 32 for character in word):
        raise StartupError(f"{word!r} has a control character, which a unit file cannot hold", exit_code=2)
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    is_plain = word and not any(character in " '\"\\;" for character in word)
    return escaped if is_plain else f'"{escaped}"'


def listen_stream(host: str, port: int, uds: str | None) -> str:
    """ListenStream= for these flags of `serve`. Raises StartupError for what systemd cannot listen on."""
    if uds is not None:
        return uds
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host or "0.0.0.0")
    except ValueError:
        raise StartupError(f"--socket needs an IP address, not --host {host}", exit_code=2) from None
    if port == 0:
        raise StartupError("--socket needs a port, not --port 0", exit_code=2)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _fill(text: str, values: dict[str, str]) -> str:
    lines = []
    for line in text.splitlines(keepends=True):
        key = next((key for key in values if key in line), None)  # a line has one at most; values are not filled
        lines.append(line if key is None else line.replace(key, values[key]))
    return "".join(lines)
