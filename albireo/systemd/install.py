"""From the flags of `albireo-run systemd` to the steps behind them. Nothing is done here."""

import argparse
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from albireo.errors import StartupError
from albireo.systemd.steps import RemoveFile, Run, Step, WriteFile
from albireo.systemd.units import DESTINATIONS, ServiceSettings, listen_stream, render

USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
HOMES = ("/home", "/root", "/run/user")
"""What ProtectHome=yes hides."""
TEMPORARY = ("/tmp", "/var/tmp")
"""What PrivateTmp=yes replaces."""
PATH_FLAGS = ("env_file", "tokenizer", "chat_template", "ssl_certfile", "ssl_keyfile", "uds")
FIRST_UNPRIVILEGED_PORT = 1024


def settings_from(
    args: argparse.Namespace, serve_flags: Sequence[str], serve_parser: argparse.ArgumentParser
) -> ServiceSettings:
    """The service that these flags describe. Exits with code 2 on flags that `serve` does not have; raises
    StartupError for those that a service cannot have."""
    flags = ([str(Path(args.model).absolute())] if args.model else []) + list(serve_flags)
    serve = serve_parser.parse_args(flags)
    _check_flags(args, serve)
    executable = (str(Path(args.executable).absolute()),) if args.executable else this_program()
    settings = ServiceSettings(
        executable=executable,
        serve_flags=tuple(flags),
        user=args.user,
        shutdown_timeout_s=serve.shutdown_timeout,
        worker_timeout_s=serve.worker_timeout,
        needs_home=any(_is_under(path, HOMES) for path in (executable[0], *_paths(serve).values())),
    )
    return replace(settings, listen=listen_stream(serve.host, serve.port, serve.uds)) if args.socket else settings


def this_program() -> tuple[str, ...]:
    """The command that runs this installation."""
    script = Path(sys.executable).parent / "albireo-run"
    return (str(script),) if script.is_file() else (sys.executable, "-m", "albireo.cli")


def install_steps(settings: ServiceSettings, args: argparse.Namespace, is_booted: bool) -> list[Step]:
    """Of `install`. `is_booted`: systemd runs this machine. Raises StartupError."""
    root = Path(args.root or "/")
    files = render(settings)
    steps: list[Step] = []
    if not args.socket:
        del files["albireo.socket"]
        steps += _end_of_socket(root, is_booted and not args.root)
    steps += [
        WriteFile(_under(root, DESTINATIONS[name]), text, *((0o600, True) if name == "albireo.env" else ()))
        for name, text in files.items()
    ]
    if args.root:
        return steps  # users and folders are made when the system in there starts
    steps.append(Run(("systemd-sysusers", DESTINATIONS["albireo.sysusers"])))
    steps.append(Run(("systemd-tmpfiles", "--create", DESTINATIONS["albireo.tmpfiles"])))
    if is_booted:
        steps.append(Run(("systemctl", "daemon-reload")))
    if args.now:
        if not is_booted:
            raise StartupError("--now starts the service, and systemd does not run this machine")
        units = [name for name in ("albireo.socket", "albireo.service") if name in files]
        steps.append(Run(("systemctl", "enable", "--now", *units)))
    return steps


def _end_of_socket(root: Path, acts_on_systemd: bool) -> list[Step]:
    """A socket unit that another installation left would go on listening, and pass its socket to the service."""
    unit = _under(root, DESTINATIONS["albireo.socket"])
    if not unit.exists():
        return []
    stop = [Run(("systemctl", "disable", "--now", "albireo.socket"), may_fail=True)] if acts_on_systemd else []
    return [*stop, RemoveFile(unit)]


def uninstall_steps(args: argparse.Namespace, is_booted: bool) -> list[Step]:
    """Of `uninstall`: the environment file, the user and what the service has stored stay."""
    root = Path(args.root or "/")
    acts_on_systemd = is_booted and not args.root
    steps: list[Step] = []
    if acts_on_systemd:
        units = ("albireo.socket", "albireo.service")
        steps += [Run(("systemctl", "disable", "--now", unit), may_fail=True) for unit in units]
    steps += [RemoveFile(_under(root, path)) for name, path in DESTINATIONS.items() if name != "albireo.env"]
    if acts_on_systemd:
        steps.append(Run(("systemctl", "daemon-reload")))
    return steps


def notes(settings: ServiceSettings, serve_parser: argparse.ArgumentParser, is_booted: bool) -> list[str]:
    """What an operator should know before the first start."""
    paths = (settings.executable[0], *_paths(serve_parser.parse_args(list(settings.serve_flags))).values())
    found = []
    for path in paths:
        folder = closed_folder(Path(path))
        if folder is not None:
            found.append(f"{path}: {settings.user} may not enter {folder} unless it belongs to them")
        if _is_under(path, TEMPORARY):
            found.append(f"{path}: the service has a /tmp of its own and will not find it")
    if settings.needs_home:
        found.append("the program or a file of it lies in a home: ProtectHome=read-only instead of yes")
    if not is_booted:
        found.append("systemd does not run this machine: no daemon-reload")
    return found


def closed_folder(path: Path) -> Path | None:
    """The outermost folder on the way to a path that only its owner and group may enter."""
    for folder in reversed(path.parents):
        try:
            if not folder.stat().st_mode & stat.S_IXOTH:
                return folder
        except OSError:
            return None
    return None


def _check_flags(args: argparse.Namespace, serve: argparse.Namespace) -> None:
    if not USER_NAME.fullmatch(args.user):
        raise StartupError(f"--user {args.user!r} is no name of a system user", exit_code=2)
    if args.now and args.root:
        raise StartupError("--now starts this machine's service, and --root is another's files", exit_code=2)
    if args.model and (serve.model_flag or serve.model != str(Path(args.model).absolute())):
        raise StartupError("the model is named twice", exit_code=2)
    if serve.api_key:
        text = "--api-key would stand in a unit that anybody may read; set ALBIREO_API_KEY in /etc/albireo/albireo.env"
        raise StartupError(text, exit_code=2)
    for flag, path in _paths(serve).items():
        if not Path(path).is_absolute():
            raise StartupError(f"{flag} {path}: a service has no current folder; name the whole path", exit_code=2)
    if 0 < serve.port < FIRST_UNPRIVILEGED_PORT and not args.socket and serve.uds is None:
        text = f"--port {serve.port} is for root; with --socket systemd opens it for the service"
        raise StartupError(text, exit_code=2)
    model = _paths(serve).get("--model")
    if model and not args.root and not Path(model).is_dir():
        raise StartupError(f"there is no folder {model}; --model names a checkpoint's")


def _paths(serve: argparse.Namespace) -> dict[str, str]:
    """Paths among the flags of `serve`, by flag."""
    named = {f"--{name.replace('_', '-')}": getattr(serve, name) for name in PATH_FLAGS}
    named["--model"] = serve.model_flag or serve.model
    if serve.generation_config not in ("auto", "vllm"):
        named["--generation-config"] = serve.generation_config
    # --chat-template may be the template itself
    return {flag: path for flag, path in named.items() if path and "{" not in path}


def _is_under(path: str, folders: Sequence[str]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def _under(root: Path, path: str) -> Path:
    return root / path.lstrip("/")
