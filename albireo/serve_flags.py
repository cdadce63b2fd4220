"""What a command needs to know of the flags of `serve` that it hands on to a server of its own."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from albireo.config import environment_api_keys
from albireo.settings import EnvFileError, LiveSettings


def server_api_key(serve_flags: Sequence[str]) -> str | None:
    """One that a server with these flags takes; None where it asks for none, or would not start."""
    flags = _known(serve_flags)
    try:
        settings = LiveSettings(flags.env_file, tuple(flags.api_key), environment_api_keys())
    except EnvFileError:  # the server says it
        return None
    return next(iter(settings.current.api_keys), None)


def has_replicas(serve_flags: Sequence[str]) -> bool:
    """More than one."""
    return _known(serve_flags).replicas not in (None, "1")


def shown(serve_flags: Sequence[str]) -> list[str]:
    """As they may be printed and saved: without what --api-key says."""
    flags = [flag if not flag.startswith("--api-key=") else "--api-key=..." for flag in serve_flags]
    return ["..." if before == "--api-key" else flag for before, flag in zip(["", *flags], flags, strict=False)]


def _known(serve_flags: Sequence[str]) -> argparse.Namespace:
    """Flags that make no sense are the server's to refuse: nothing is checked here."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--api-key", nargs="?", action="append", default=[])
    parser.add_argument("--env-file", nargs="?", type=Path)
    parser.add_argument("--replicas", nargs="?")
    return parser.parse_known_args(list(serve_flags))[0]
