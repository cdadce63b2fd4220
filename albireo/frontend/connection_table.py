"""How many connections a frontend has, and who goes when there are too many.

Each is a file descriptor. Without any left libuv resets who comes, and a link to a new coordinator could not be made
either. So some are kept back, and before that: a new connection takes the place of the one that has been idle longest,
as in nginx; where each has a request the new one is told to come later.
"""

import logging
import resource
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from albireo import limits

logger = logging.getLogger(__name__)

_WARN_EVERY_S: Final = 60.0
_MOST_FILES: Final = 2**20
"""The kernel's own bound (fs.nr_open), unless somebody has changed it."""


def most_connections() -> int:
    """As many as this process may open files beside those that it has, less limits.SPARE_FILES; at least one."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        allowed = _MOST_FILES
    num_open = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return max(1, allowed - num_open - limits.SPARE_FILES)


class ConnectionTable(ServerState):
    """uvicorn's state, with the connections in the order in which they became idle."""

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.max_connections = max_connections
        self._idle: OrderedDict[HttpToolsProtocol, None] = OrderedDict()
        self._warned_s = -_WARN_EVERY_S

    def set_idle(self, connection: HttpToolsProtocol) -> None:
        """No request of it is being read or answered."""
        self._idle[connection] = None

    def set_busy(self, connection: HttpToolsProtocol) -> None:
        """It has a request, or has ended."""
        self._idle.pop(connection, None)

    def make_room(self) -> bool:
        """One more is there, and counted: another is closed where it is too many. False where none can be."""
        if len(self.connections) <= self.max_connections:
            return True
        if time.monotonic() - self._warned_s >= _WARN_EVERY_S:
            self._warned_s = time.monotonic()
            logger.warning("%d connections, the most that `ulimit -n` leaves room for", self.max_connections)
        if not self._idle:
            return False
        oldest, _ = self._idle.popitem(last=False)
        oldest.transport.close()
        return True
