"""`python -m albireo.cluster.engine_child DIRECTORY SERVE_FLAGS`: an engine that ends with the process that started it.

Its stdin is a pipe from there, as in `child.py`: its end of file means that the other is gone, however it died. The
engine then stops in order; no client is left that it would have to wait for. The directory of the HTTP socket goes
with it.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from albireo import run_directory
from albireo.cli import main

STOP_TIMEOUT_S: Final = 10.0


def _lifeline(directory: Path) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT_S)
    run_directory.remove(directory)
    os._exit(1)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    threading.Thread(target=_lifeline, args=(path,), name="lifeline", daemon=True).start()
    try:
        sys.exit(main(["serve", *sys.argv[2:]]))
    finally:
        run_directory.remove(path)
