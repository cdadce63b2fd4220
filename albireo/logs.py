"""Log lines of every process: stderr, one line each, with the process's name. A leaf."""

import logging
import sys

from albireo.config import under_journald

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""syslog's numbers, as systemd reads them from a line's <N> prefix."""


class _JournalFormatter(logging.Formatter):
    """The journal has its own timestamps and takes the level from <N>; each line of a traceback needs its own."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def configure(process_name: str, level: str) -> None:
    """Sends this process's log records to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if under_journald():
        handler.setFormatter(_JournalFormatter(f"{process_name}: %(message)s"))
    else:
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s.%(msecs)03d %(levelname)-7s {process_name}: %(message)s", "%H:%M:%S")
        )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # at debug its compiler writes a hundred thousand lines for a kernel
    logging.getLogger("numba").setLevel(logging.WARNING)
