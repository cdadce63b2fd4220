"""What GPUs use, on /metrics."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fakes import tokens_reply
from frontend_server import MODEL, FrontendServer
from prometheus_client import CollectorRegistry, generate_latest

from albireo.frontend.gpu_metrics import STALE_NS, GpuMetrics
from albireo.shm import layout
from albireo.shm.device_use import DeviceUse, Reading
from albireo.shm.stats import EngineStats

FULL = Reading(
    read_ns=1_000_000_000, energy_mj=900_000, utilization_perc=80, memory_used_bytes=1 << 36, power_mw=450_500
)
GAUGES = {"gpu_utilization_perc", "gpu_memory_used_bytes", "gpu_power_watts"}


class Engine:
    """Two ranks' records, a clock, and what /metrics says of them: {name: {rank: value}}."""

    def __init__(self) -> None:
        self.records = np.zeros(2, layout.DEVICE_USE)
        self.now_ns = FULL.read_ns
        self._registry = CollectorRegistry()
        self._registry.register(GpuMetrics(("m", "0"), self.records, lambda: self.now_ns))

    def text(self) -> str:
        return generate_latest(self._registry).decode()

    def shown(self) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for line in self.text().splitlines():
            if not line.startswith("#"):
                name, _, rest = line.removeprefix("albireo:").partition('{engine="0",model_name="m",rank="')
                rank, value = rest.split('"} ')
                found.setdefault(name, {})[int(rank)] = float(value)
        return found


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_every_figure_is_shown_in_its_unit_for_each_rank(engine: Engine) -> None:
    uses = [DeviceUse(engine.records[rank : rank + 1]) for rank in range(2)]
    for rank, use in enumerate(uses):
        use.write(FULL)
        use.write(FULL._replace(energy_mj=900_000 + (rank + 1) * 1_500))
        use.add_busy(250_000_000)
    engine.now_ns += 200_000_000
    assert engine.shown() == {
        "energy_joules_total": {0: 1.5, 1: 3.0},
        "gpu_busy_seconds_total": {0: 0.25, 1: 0.25},
        "gpu_utilization_perc": {0: 0.8, 1: 0.8},
        "gpu_memory_used_bytes": {0: 1 << 36, 1: 1 << 36},
        "gpu_power_watts": {0: 450.5, 1: 450.5},
        "gpu_reading_age_seconds": {0: 0.2, 1: 0.2},
    }
    assert "# TYPE albireo:energy_joules_total counter" in engine.text()
    assert "# TYPE albireo:gpu_power_watts gauge" in engine.text()


def test_without_a_gpu_there_is_not_even_a_heading(engine: Engine) -> None:
    assert engine.text() == ""


def test_a_figure_that_only_some_ranks_have_has_their_lines_only(engine: Engine) -> None:
    DeviceUse(engine.records[:1]).write(FULL._replace(energy_mj=None, power_mw=None))
    DeviceUse(engine.records[1:]).write(FULL)
    shown = engine.shown()
    assert {name: set(ranks) for name, ranks in shown.items()} == {
        "energy_joules_total": {1}, "gpu_power_watts": {1}, "gpu_busy_seconds_total": {0, 1},
        "gpu_utilization_perc": {0, 1}, "gpu_memory_used_bytes": {0, 1}, "gpu_reading_age_seconds": {0, 1},
    }  # fmt: skip


def test_a_gpu_that_is_lost_keeps_its_busy_time_only(engine: Engine) -> None:
    use = DeviceUse(engine.records[:1])
    use.write(FULL)
    use.write(Reading(FULL.read_ns + 1, None, None, None, None))
    assert engine.shown() == {"gpu_busy_seconds_total": {0: 0.0}}


def test_what_a_simulator_says_is_labelled(engine: Engine) -> None:
    for rank in range(2):
        DeviceUse(engine.records[rank : rank + 1], is_simulated=True).write(FULL)
    lines = [line for line in engine.text().splitlines() if not line.startswith("#")]
    assert len(lines) == 12
    assert all('simulated="true"' in line for line in lines)


def test_gauges_of_an_old_reading_are_gone_and_counters_stand(engine: Engine) -> None:
    DeviceUse(engine.records[:1]).write(FULL)
    engine.now_ns = FULL.read_ns + STALE_NS
    assert set(engine.shown()) >= GAUGES
    engine.now_ns += 1
    assert set(engine.shown()) == {"energy_joules_total", "gpu_busy_seconds_total", "gpu_reading_age_seconds"}


def test_a_counter_that_the_driver_began_anew_is_absent(engine: Engine) -> None:
    use = DeviceUse(engine.records[:1])
    use.write(FULL)
    use.write(FULL._replace(energy_mj=5))
    assert "energy_joules_total" not in engine.shown()


@pytest.fixture
def server(tokenizer_path: Path, run_dir: Path) -> Iterator[FrontendServer]:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74])) as server:
        yield server


def test_a_frontend_shows_what_the_worker_wrote(server: FrontendServer) -> None:
    assert "albireo:gpu_" not in httpx.get(server.url + "/metrics").text
    DeviceUse(EngineStats(server.config.segments.stats).devices).add_busy(3_000_000_000)
    line = f'albireo:gpu_busy_seconds_total{{engine="0",model_name="{MODEL}",rank="0"}} 3.0'
    text = httpx.get(server.url + "/metrics").text
    assert line in text.splitlines()
    assert "energy" not in text
