"""A first start compiles on all cores: `python -m albireo.gpu_worker.compile_ahead`, started by the worker of rank 0.

Compiling holds the GIL, so the worker's own order (attention, what is between products, sampling) is met from the
other end by processes, and the on-disk cache carries the result. A lock per kernel keeps two from making the same.
"""

import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec
import setproctitle

from albireo.config import WorkerConfig, encode_config
from albireo.gpu_worker.attention.cpu import kernel_makers
from albireo.gpu_worker.kernels.elementwise import rms_norm_kernel
from albireo.gpu_worker.kernels.launch import compile_in_turns
from albireo.gpu_worker.loader import TORCH_DTYPES
from albireo.gpu_worker.sampling.adjust_kernels import adjust_kernel
from albireo.gpu_worker.sampling.arguments import kernel_element
from albireo.gpu_worker.sampling.decide_kernel import decide_kernel
from albireo.gpu_worker.sampling.local_kernels import share_kernel
from albireo.gpu_worker.sampling.logprob_kernels import score_kernel
from albireo.gpu_worker.sampling.logprob_merge import merge_kernel
from albireo.gpu_worker.sampling.row_kernel import row_kernel

log = logging.getLogger(__name__)

MAX_PROCESSES: Final = 3
"""There are about three kernels that take seconds."""


class CompileAhead:
    """The helping processes of one start. They end when they are done, when told to, or with this process."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Call before the first kernel is made. The quickest one comes first: where the cache lacks it, it is likely
        to lack the others, and the processes start."""
        compile_in_turns(self._config.run_dir, on_first_compile=self.start)
        element: Any = kernel_element(TORCH_DTYPES[self._config.dtype])
        rms_norm_kernel(element)

    def start(self) -> None:
        """One process for each core but this process's own; on one core, and for ranks after the first, none."""
        count = min(MAX_PROCESSES, len(os.sched_getaffinity(0)) - 1) if self._config.rank == 0 else 0
        for index in range(count):
            command = [sys.executable, "-m", "albireo.gpu_worker.compile_ahead", str(index), str(count)]
            try:
                process = subprocess.Popen(command, stdin=subprocess.PIPE)
                self._processes.append(process)
                assert process.stdin is not None
                process.stdin.write(encode_config(self._config))
                process.stdin.flush()
            except OSError as error:  # no room for another process: this one compiles everything
                log.debug("no help with compiling: %s", error)

    def stop(self) -> None:
        """The worker has all its kernels."""
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        self._processes.clear()


def kernels_ahead(config: WorkerConfig) -> list[Callable[[], object]]:
    """What makes the kernels that take the longest, of those that this worker needs last."""
    dtype = TORCH_DTYPES[config.dtype]
    element: Any = kernel_element(dtype)
    _, chunk = kernel_makers(dtype)
    makers: list[Callable[[], object]] = [lambda: row_kernel(element)]
    if config.num_workers > 1 and config.sampling_mode == "local":
        makers += [lambda: share_kernel(element), decide_kernel]
    return [*makers, lambda: score_kernel(element), lambda: adjust_kernel(element), chunk, merge_kernel]


def main() -> None:
    """Process `argv[1]` of `argv[2]`; its config comes on stdin, whose end tells it to stop."""
    index, count = int(sys.argv[1]), int(sys.argv[2])
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerConfig)
    setproctitle.setproctitle(f"albireo-compile-{index}")
    threading.Thread(target=_end_with_stdin, name="lifeline", daemon=True).start()
    compile_in_turns(config.run_dir)
    gc.disable()  # compiling makes objects that stay: collecting was a tenth of the time
    for make in kernels_ahead(config)[index::count]:
        make()


def _end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
