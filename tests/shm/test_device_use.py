"""What a worker writes of its GPU, and what a reader may believe of it."""

from typing import Any

import numpy as np
import pytest

from albireo.shm import layout
from albireo.shm.device_use import DeviceUse, Figure, Reading

FULL = Reading(read_ns=1_000, energy_mj=5_000_000, utilization_perc=80, memory_used_bytes=70 << 30, power_mw=450_500)
READ = Figure.ENERGY | Figure.UTILIZATION | Figure.MEMORY | Figure.POWER


def test_a_reading_is_all_there_and_energy_counts_from_the_first_one() -> None:
    record = np.zeros(1, layout.DEVICE_USE)
    use = DeviceUse(record)
    use.write(FULL)
    use.write(FULL._replace(read_ns=2_000, energy_mj=5_001_234))
    assert record["valid"][0] == READ | Figure.BUSY
    assert {name: int(record[name][0]) for name in layout.DEVICE_USE.names or () if name != "valid"} == {
        "read_ns": 2_000, "energy_start_mj": 5_000_000, "energy_mj": 5_001_234, "utilization_perc": 80,
        "memory_used_bytes": 70 << 30, "power_mw": 450_500, "busy_ns": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "figure"),
    [
        ("energy_mj", Figure.ENERGY),
        ("utilization_perc", Figure.UTILIZATION),
        ("memory_used_bytes", Figure.MEMORY),
        ("power_mw", Figure.POWER),
    ],
)
def test_a_figure_that_a_reading_lacks_is_absent_until_it_is_back(field: str, figure: Figure) -> None:
    lacking: dict[str, Any] = {field: None}
    record = np.zeros(1, layout.DEVICE_USE)
    use = DeviceUse(record)
    use.write(FULL)
    use.write(FULL._replace(**lacking))
    assert record["valid"][0] == (READ | Figure.BUSY) & ~figure
    use.write(FULL)
    assert record["valid"][0] == READ | Figure.BUSY
    assert record["energy_start_mj"][0] == 5_000_000


def test_energy_that_is_there_late_counts_from_then_on() -> None:
    record = np.zeros(1, layout.DEVICE_USE)
    use = DeviceUse(record)
    use.write(FULL._replace(energy_mj=None))
    use.write(FULL)
    assert record["energy_mj"][0] == record["energy_start_mj"][0] == 5_000_000


def test_busy_time_adds_up_and_needs_no_reading() -> None:
    record = np.zeros(1, layout.DEVICE_USE)
    use = DeviceUse(record)
    assert record["valid"][0] == Figure.BUSY
    for time_ns in (5, 0, 2_000_000_000_000):
        use.add_busy(time_ns)
    assert record["busy_ns"][0] == 2_000_000_000_005


def test_a_worker_that_starts_again_counts_from_nothing() -> None:
    record = np.zeros(1, layout.DEVICE_USE)
    before = DeviceUse(record)
    before.write(FULL)
    before.add_busy(7)
    DeviceUse(record)
    assert (record["valid"][0], record["busy_ns"][0]) == (Figure.BUSY, 0)


def test_a_simulated_device_says_so_in_every_reading() -> None:
    record = np.zeros(1, layout.DEVICE_USE)
    use = DeviceUse(record, is_simulated=True)
    assert record["valid"][0] == Figure.BUSY | Figure.SIMULATED
    use.write(FULL)
    assert record["valid"][0] == READ | Figure.BUSY | Figure.SIMULATED


def test_a_writer_touches_its_own_record_only() -> None:
    records = np.zeros(3, layout.DEVICE_USE)
    use = DeviceUse(records[1:2])
    use.write(FULL)
    use.add_busy(3)
    assert records["busy_ns"].tolist() == [0, 3, 0]
    assert not records[[0, 2]].tobytes().strip(b"\0")
