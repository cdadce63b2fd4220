"""argv of `albireo-run systemd`: its flags, and the installer behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

BOOTED = Path("/run/systemd/system")
"""Exists where systemd runs the machine (sd_booted(3))."""


def add_systemd_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `systemd` and their flags."""
    parser.description = "Makes a systemd service of this installation"
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser("install", help="write the unit files; flags of `serve` stand behind --")
    install.add_argument("--model", metavar="PATH", help="checkpoint folder (default: the bundled demo model)")
    install.add_argument("--user", default="albireo", metavar="NAME", help="who runs it; made if it is not there")
    install.add_argument("--socket", action="store_true",
                         help="let systemd listen: no connection is refused while the server starts again, and ports "
                              "below 1024 are possible")  # fmt: skip
    install.add_argument("--executable", metavar="PATH", help="the albireo-run to start (default: this one)")
    install.add_argument("--now", action="store_true", help="start it, now and at every boot")
    uninstall = actions.add_parser("uninstall", help="stop the service and remove its unit files")
    for action in (install, uninstall):
        action.add_argument("--root", metavar="DIR", help="of an image: its files alone, nothing is run")
        action.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def run_systemd(args: argparse.Namespace, serve_flags: Sequence[str], serve_parser: argparse.ArgumentParser) -> int:
    """Exit code 0, 2 for flags that make no sense, 3 for what cannot be done here."""
    from albireo.errors import StartupError
    from albireo.systemd.install import install_steps, notes, settings_from, uninstall_steps
    from albireo.systemd.steps import perform

    try:
        hints = []
        if args.action == "install":
            settings = settings_from(args, serve_flags, serve_parser)
            steps = install_steps(settings, args, BOOTED.is_dir())
            hints = [] if args.root else notes(settings, serve_parser, BOOTED.is_dir())
        else:
            steps = uninstall_steps(args, BOOTED.is_dir())
        if args.dry_run:
            print("\n".join(step.describe() for step in steps))
        else:
            perform(steps)
    except StartupError as error:
        print(f"albireo-run systemd: {error}", file=sys.stderr)
        return error.exit_code
    for hint in hints:
        print(f"note: {hint}", file=sys.stderr)
    return 0
