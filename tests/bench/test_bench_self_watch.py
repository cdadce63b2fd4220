import asyncio
import gc
import time

import pytest

from albireo.bench.loop_lag import LoopLagSampler
from albireo.bench.self_watch import ClientLoad, SelfWatch, bottleneck_warnings


def load(cpu_s: float = 0.1, lag_mean_ms: float = 0.05, lag_p99_ms: float = 0.2) -> ClientLoad:
    return ClientLoad(
        wall_s=1, cpu_s=cpu_s, waited_s=0, lag_mean_ms=lag_mean_ms, lag_p99_ms=lag_p99_ms, lag_max_ms=1, num_chunks=1000
    )


def test_an_idle_client_says_nothing() -> None:
    assert bottleneck_warnings(load(), [5.0] * 100) == []


def test_a_busy_client_says_that_it_may_be_the_bottleneck() -> None:
    (warning,) = bottleneck_warnings(load(cpu_s=0.85), [5.0] * 100)
    assert "85% of a core" in warning
    assert bottleneck_warnings(load(cpu_s=0.85), []) == [warning]


@pytest.mark.parametrize("late", [load(lag_mean_ms=0.6), load(lag_p99_ms=3.0)])
def test_lag_that_is_large_beside_the_measured_latency_is_told(late: ClientLoad) -> None:
    (warning,) = bottleneck_warnings(late, [5.0] * 100)
    assert "handled chunks late" in warning
    assert bottleneck_warnings(late, [100.0] * 100) == []
    assert bottleneck_warnings(late, []) == []


def test_a_blocked_loop_shows_as_lag_for_every_moment_it_was_away() -> None:
    async def run() -> list[int]:
        with LoopLagSampler(interval_ns=5_000_000) as sampler:
            await asyncio.sleep(0.02)
            time.sleep(0.1)
            await asyncio.sleep(0.02)
        return sampler.lags_ns

    lags_ms = [lag / 1e6 for lag in asyncio.run(run())]
    assert max(lags_ms) > 90
    assert sum(lag > 40 for lag in lags_ms) >= 10
    assert min(lags_ms) >= 0


def test_the_watch_measures_cpu_and_keeps_the_collector_off_meanwhile() -> None:
    async def run() -> ClientLoad:
        with SelfWatch() as watch:
            assert not gc.isenabled()
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
            await asyncio.sleep(0)
        assert gc.isenabled()
        return watch.load(num_chunks=100)

    measured = asyncio.run(run())
    assert measured.cpu_s >= 0.05
    assert measured.wall_s >= measured.cpu_s * 0.5
    assert measured.cpu_us_per_chunk == pytest.approx(measured.cpu_s * 1e4)
    assert measured.cpu_share == pytest.approx(measured.cpu_s / measured.wall_s)
