"""What the CUDA device needs of CUDA beside torch tensors: memory that host and GPU share, captured steps, wake-ups and
clocks. `HostRuntime` does the same on the CPU, for tests in Triton's interpreter."""

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from albireo.gpu_worker.cuda.driver import CudaDriver
from albireo.gpu_worker.cuda.memory import GIB, DeviceMemory, check_weights_fit
from albireo.gpu_worker.cuda.wake import Wake


class Runtime(Protocol):
    """One device and one stream of steps: what is launched there runs in that order. Copies run beside it."""

    device: torch.device
    wake: Wake
    """Rung once for each `finish`."""
    num_multiprocessors: int
    is_timed: bool
    """Whether kernels note the device's clock."""

    def pin(self, memory: npt.NDArray[np.uint8]) -> None:
        """Shared memory, a whole mapping: from now on it can be copied to and from, and kernels can use it in place."""

    def shared_zeros(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """New memory that the host has and kernels read and write in place."""

    def send(self, target: int, source: int, nbytes: int) -> None:
        """Copies from pinned host memory to the device, beside what runs there. Returns at once."""

    def wait_for_sent(self) -> None:
        """What is launched from now on runs after all that was sent so far."""

    def finish(self, target: int, source: int, nbytes: int) -> None:
        """Once all that was launched so far is done, copies from the device to pinned host memory, then rings `wake`;
        what is launched next does not wait for it. Returns at once."""

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """A call that does again what `launch` launches, with the same tensors. `launch` has run before."""

    def host_ns(self, stamp: int) -> int:
        """The device's clock as CLOCK_MONOTONIC."""

    def check_weights_fit(self, nbytes: int) -> None:
        """Raises OutOfDeviceMemoryError."""

    def check(self) -> None:
        """Raises what the device has failed with, if it has: a failed device rings no more."""

    def settle(self, timeout_s: float) -> None:
        """Waits until nothing is left to ring, or as long as that."""

    def allocated_bytes(self) -> int:
        """By torch, on the device."""

    def memory(self, weights_bytes: int) -> DeviceMemory:
        """The device's memory, now that the largest step has run."""


class CudaRuntime:
    """A GPU. Makes its stream the calling thread's current one; all later work of the thread goes there."""

    is_timed = True

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        self.num_multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self.uuid = str(torch.cuda.get_device_properties(self.device).uuid)
        """By which other libraries know the device."""
        self._driver = CudaDriver()
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(self._stream)
        # streams of their own: a step waits neither for the bus nor until the driver's thread has rung
        self._ahead = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._behind = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()
        self.wake = Wake()
        self._offset_ns = self._calibrate()

    def pin(self, memory: npt.NDArray[np.uint8]) -> None:
        self._driver.register(memory)

    def shared_zeros(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def send(self, target: int, source: int, nbytes: int) -> None:
        self._driver.copy(target, source, nbytes, self._ahead.cuda_stream)

    def wait_for_sent(self) -> None:
        self._sent.record(self._ahead)
        self._stream.wait_event(self._sent)

    def finish(self, target: int, source: int, nbytes: int) -> None:
        behind = self._behind.cuda_stream
        self._done.record(self._stream)
        self._behind.wait_event(self._done)
        self._driver.copy(target, source, nbytes, behind)
        self._driver.call_after(behind, self.wake.function, self.wake.argument)

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        # not torch.cuda.graph: that gives all cached memory back first, which other programs may take
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
        return graph.replay

    def host_ns(self, stamp: int) -> int:
        # a finished step cannot end in the future: the clocks have drifted, by a few microseconds a second
        now_ns = time.monotonic_ns()
        self._offset_ns = min(self._offset_ns, now_ns - stamp)
        return stamp + self._offset_ns

    def check(self) -> None:
        self._stream.query()

    def settle(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not self._behind.query() and time.monotonic() < end:
            time.sleep(0.005)

    def check_weights_fit(self, nbytes: int) -> None:
        check_weights_fit(nbytes, *torch.cuda.mem_get_info(self.device))

    def allocated_bytes(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def memory(self, weights_bytes: int) -> DeviceMemory:
        torch.cuda.synchronize(self.device)
        return DeviceMemory.measured(self.device, weights_bytes)

    def _calibrate(self) -> int:
        """CLOCK_MONOTONIC minus the GPU's clock, from the quickest of some round trips."""
        from albireo.gpu_worker.cuda.kernels.stamp import read_clock

        stamp = self.shared_zeros(1, dtype=torch.int64)
        trips = []
        for _ in range(20):
            before_ns = time.monotonic_ns()
            read_clock[(1,)](stamp)
            self._stream.synchronize()
            after_ns = time.monotonic_ns()
            trips.append((after_ns - before_ns, (before_ns + after_ns) // 2 - int(stamp[0])))
        return min(trips)[1]


class HostRuntime:
    """The CPU in a GPU's place: what is launched has run when the call returns, and no kernel reads a clock."""

    is_timed = False
    num_multiprocessors = 4
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.wake = Wake()

    def pin(self, memory: npt.NDArray[np.uint8]) -> None:
        pass

    def shared_zeros(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def send(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def wait_for_sent(self) -> None:
        pass

    def finish(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)
        os.eventfd_write(self.wake.fd, 1)

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch

    def host_ns(self, stamp: int) -> int:
        return stamp

    def check(self) -> None:
        pass

    def settle(self, timeout_s: float) -> None:
        pass

    def check_weights_fit(self, nbytes: int) -> None:
        pass

    def allocated_bytes(self) -> int:
        return 0

    def memory(self, weights_bytes: int) -> DeviceMemory:
        return DeviceMemory(total=GIB, free=GIB, weights=0, peak=0, reserved=0)
