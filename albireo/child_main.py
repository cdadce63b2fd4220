"""`python -m albireo.child_main MODULE ARGUMENTS`: what the supervisor starts. Runs MODULE as `python -m` would, in a
process that the kernel kills when the supervisor dies. A leaf that imports next to nothing.

A child that has its config knows when the supervisor is gone (`child.start`), but imports come first: torch's take
seconds where no core is free, and other threads of Python's have no turn meanwhile.
"""

import ctypes
import runpy
import select
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def die_with_supervisor() -> None:
    """From now on this process is killed when the thread that started it ends, whatever it is doing (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if _is_alone():  # it was dead before we asked
        sys.exit(1)


def outlive_supervisor() -> None:
    """Undoes it, in a process that tidies up once the supervisor is dead."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, 0)


def _is_alone() -> bool:
    """Whether nobody has the other end of the stdin pipe any more, whatever is still in it."""
    poll = select.poll()
    poll.register(0, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


if __name__ == "__main__":
    die_with_supervisor()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
