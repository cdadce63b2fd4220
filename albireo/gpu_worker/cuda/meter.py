"""What one GPU uses, as its driver counts it: energy, utilisation, memory and power, by NVML (package nvidia-ml-py).

A reading is four calls of the driver, each some 2 to 200 microseconds on an idle machine and now and then milliseconds,
as when another process asks too: they take locks of the driver's. They wait for nothing that the GPU computes, and the
GIL is free meanwhile. The worker takes one at most twice a second, and best while nothing is pending.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Any

from albireo.shm.device_use import Reading

log = logging.getLogger(__name__)

INTERVAL_NS = 500_000_000
"""Between two readings at least. The driver's own figures are renewed 10 to 50 times a second at best."""

_UUID_KINDS = ("GPU-", "MIG-")
"""What NVML writes before an identifier: a whole GPU, or a part of one. A part has memory and no energy of its own."""


class DeviceMeter:
    """Reads one GPU. Where that is not possible it says why, once, at info level, and never has a reading."""

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        """`uuid`: as `torch.cuda.get_device_properties(i).uuid` has it, with or without "GPU-"; an index would not do,
        since CUDA_VISIBLE_DEVICES renumbers. `nvml`: the module to ask, `pynvml` unless a test brings its own."""
        self._due_ns = 0
        self._calls: dict[str, Callable[[], int]] = {}
        """By figure of a `Reading`; those that this GPU does not have are dropped when that turns out."""
        self._told: set[str] = set()
        self._nvml = _import_nvml() if nvml is None else nvml
        self._is_open = False
        if self._nvml is not None:
            self._open(uuid)

    def sample(self, now_ns: int) -> Reading | None:
        """A reading, at most every INTERVAL_NS; None while it is not due, or where there is none to be had.

        `now_ns`: CLOCK_MONOTONIC. A GPU that is lost in mid-service gives readings without figures."""
        if not self._is_open or now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + INTERVAL_NS
        figures = ("energy_mj", "utilization_perc", "memory_used_bytes", "power_mw")
        return Reading(now_ns, *map(self._ask, figures))

    def close(self) -> None:
        """Lets go of NVML; there is no reading from now on."""
        if self._is_open:
            self._is_open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                log.debug("NVML did not shut down: %s", error)

    def _open(self, uuid: str) -> None:
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            log.info("no GPU energy and utilisation figures: NVML does not start: %s", error)
            return
        self._is_open = True
        try:
            handle = _find(nvml, uuid)
        except nvml.NVMLError as error:
            log.info("no GPU energy and utilisation figures: NVML does not find GPU %s: %s", uuid, error)
            self.close()
            return
        self._calls = {
            "energy_mj": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
            "utilization_perc": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "power_mw": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
        }

    def _ask(self, figure: str) -> int | None:
        call = self._calls.get(figure)
        if call is None:
            return None
        nvml = self._nvml
        try:
            return int(call())
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission) as error:
            log.info("this GPU has no %s figure: %s", figure, error)
            del self._calls[figure]  # it will not come; asking costs as much as an answer
        except nvml.NVMLError as error:
            if figure not in self._told:
                log.warning("the GPU's %s cannot be read at the moment: %s", figure, error)
            self._told.add(figure)
        return None


def _import_nvml() -> Any:
    """The module, or None."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        log.info("no GPU energy and utilisation figures: they need nvidia-ml-py (pip install 'albireo[cuda]')")
        return None


def _find(nvml: Any, uuid: str) -> Any:
    """NVML's handle. Raises NVMLError when it knows no such device."""
    bare = uuid.strip()
    for kind in _UUID_KINDS:
        bare = bare.removeprefix(kind)
    whole, part = (kind + bare for kind in _UUID_KINDS)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(whole)
    except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        return nvml.nvmlDeviceGetHandleByUUID(part)
