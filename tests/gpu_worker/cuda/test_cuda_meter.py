"""The GPU's energy and utilisation, from a fake NVML."""

import importlib
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from albireo.gpu_worker.cuda.meter import INTERVAL_NS, DeviceMeter
from albireo.shm.device_use import Reading

UUID = "8f6c2a3e-1b0d-4c5a-9e7f-001122334455"


class NVMLError(Exception):
    """As in pynvml: every error is one of these."""


class NotSupported(NVMLError): ...


class FunctionNotFound(NVMLError): ...


class NoPermission(NVMLError): ...


class NotFound(NVMLError): ...


class InvalidArgument(NVMLError): ...


class FakeNvml:
    """The part of pynvml that is used, for one GPU. An exception in place of a figure is raised."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupported
    NVMLError_FunctionNotFound = FunctionNotFound
    NVMLError_NoPermission = NoPermission
    NVMLError_NotFound = NotFound
    NVMLError_InvalidArgument = InvalidArgument

    def __init__(self, name: str = "GPU-" + UUID) -> None:
        self.name = name
        self.energy: int | Exception = 123_456
        self.utilization: int | Exception = 97
        self.memory: int | Exception = 1 << 36
        self.power: int | Exception = 612_000
        self.init_error: Exception | None = None
        self.calls: list[str] = []
        self.num_open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise self.init_error
        self.num_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.num_open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != self.name:
            raise NotFound("Not Found")
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return self._answer("energy", handle)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self._answer("utilization", handle), memory=3)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(total=1 << 37, free=1, used=self._answer("memory", handle))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return self._answer("power", handle)

    def _answer(self, figure: str, handle: str) -> int:
        assert handle == "handle"
        assert self.num_open == 1
        self.calls.append(figure)
        value: int | Exception = getattr(self, figure)
        if isinstance(value, Exception):
            raise value
        return value


@pytest.mark.parametrize("uuid", [UUID, "GPU-" + UUID])
def test_a_reading_has_every_figure(uuid: str) -> None:
    assert DeviceMeter(uuid, FakeNvml()).sample(5) == Reading(5, 123_456, 97, 1 << 36, 612_000)


def test_readings_come_no_faster_than_the_interval() -> None:
    nvml = FakeNvml()
    meter = DeviceMeter(UUID, nvml)
    times = [10**12 + step * INTERVAL_NS // 4 for step in range(9)]
    taken = [now_ns for now_ns in times if meter.sample(now_ns) is not None]
    assert taken == [times[0], times[4], times[8]]
    assert len(nvml.calls) == 12


@pytest.mark.parametrize("error", [NotSupported, FunctionNotFound, NoPermission])
@pytest.mark.parametrize(
    ("figure", "field"),
    [
        ("energy", "energy_mj"),
        ("utilization", "utilization_perc"),
        ("memory", "memory_used_bytes"),
        ("power", "power_mw"),
    ],
)
def test_a_figure_that_the_gpu_does_not_have_is_absent_and_not_asked_for_again(
    figure: str, field: str, error: type[NVMLError], caplog: pytest.LogCaptureFixture
) -> None:
    nvml = FakeNvml()
    setattr(nvml, figure, error("Not Supported"))
    meter = DeviceMeter(UUID, nvml)
    lacking: dict[str, Any] = {field: None}
    expected = Reading(1, 123_456, 97, 1 << 36, 612_000)._replace(**lacking)
    with caplog.at_level(logging.INFO):
        assert meter.sample(1) == expected
        assert meter.sample(1 + INTERVAL_NS) == expected._replace(read_ns=1 + INTERVAL_NS)
    assert nvml.calls.count(figure) == 1
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_gpu_lost_in_mid_service_has_no_figures_is_told_once_and_may_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nvml = FakeNvml()
    meter = DeviceMeter(UUID, nvml)
    assert meter.sample(0) is not None
    lost = NVMLError("GPU is lost")
    nvml.energy = nvml.utilization = nvml.memory = nvml.power = lost
    for turn in range(1, 4):
        assert meter.sample(turn * INTERVAL_NS) == Reading(turn * INTERVAL_NS, None, None, None, None)
    assert len(caplog.records) == 4
    assert all("GPU is lost" in record.getMessage() for record in caplog.records)
    nvml.energy = 200_000
    assert meter.sample(4 * INTERVAL_NS) == Reading(4 * INTERVAL_NS, 200_000, None, None, None)


def test_a_part_of_a_gpu_is_found_by_its_own_name() -> None:
    nvml = FakeNvml("MIG-" + UUID)
    nvml.energy = nvml.utilization = nvml.power = NotSupported("Not Supported")
    for uuid in (UUID, "MIG-" + UUID):
        assert DeviceMeter(uuid, nvml).sample(0) == Reading(0, None, None, 1 << 36, None)
        nvml.num_open = 0


def refuse_start(nvml: FakeNvml) -> None:
    nvml.init_error = NVMLError("Driver Not Loaded")


def lose_gpu(nvml: FakeNvml) -> None:
    nvml.name = "GPU-another"


@pytest.mark.parametrize(("fault", "said"), [(refuse_start, "Driver Not Loaded"), (lose_gpu, f"GPU {UUID}: Not Found")])
def test_without_nvml_or_the_gpu_there_are_no_readings_and_one_line(
    fault: Callable[[FakeNvml], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    nvml = FakeNvml()
    fault(nvml)
    with caplog.at_level(logging.INFO):
        meter = DeviceMeter(UUID, nvml)
        assert [meter.sample(turn * INTERVAL_NS) for turn in range(3)] == [None] * 3
        meter.close()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert said in caplog.text
    assert nvml.num_open == 0


def test_without_the_package_there_are_no_readings_and_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with caplog.at_level(logging.INFO):
        meter = DeviceMeter(UUID)
        assert meter.sample(0) is meter.sample(INTERVAL_NS) is None
    assert "nvidia-ml-py" in caplog.text
    assert len(caplog.records) == 1


def test_a_closed_meter_has_let_go_of_nvml_and_reads_nothing() -> None:
    nvml = FakeNvml()
    meter = DeviceMeter(UUID, nvml)
    meter.close()
    meter.close()
    assert nvml.num_open == 0
    assert meter.sample(0) is None
