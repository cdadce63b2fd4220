"""What /metrics says of a run, added up over replicas."""

import pytest

from albireo.bench.gpu_use import parse as parse_gpus
from albireo.tune.engine_watch import EXPOSED, PREEMPTIONS, engine_use, parse


def metrics(preemptions: tuple[int, int], device_s: float, usage: float) -> str:
    lines = ["# HELP albireo:num_preemptions_total x", "python_info 1.0"]
    for replica in (0, 1):
        labels = f'engine="{replica}",model_name="m"'
        lines += [
            f"albireo:num_preemptions_total{{{labels}}} {preemptions[replica]}",
            f"albireo:step_device_seconds_total{{{labels}}} {device_s * (replica + 1)}",
            f"albireo:step_exposed_seconds_total{{{labels}}} {device_s * 0.1}",
            f"albireo:kv_cache_usage_perc{{{labels}}} {usage * (replica + 1)}",
            f"albireo:kv_cache_blocks{{{labels}}} {100 - replica}",
            f'albireo:cache_config_info{{block_size="16",{labels}}} 1.0',
        ]
    return "\n".join(lines)


def test_counters_are_added_and_the_fullest_replica_is_the_peak() -> None:
    texts = [metrics((5, 5), 1.0, 0.0), metrics((5, 5), 2.0, 0.4), metrics((6, 7), 3.0, 0.1)]
    use = engine_use([parse(text, 10.0 * number) for number, text in enumerate(texts)])
    assert use is not None
    assert (use.total(PREEMPTIONS), use.kv_usage_peak, use.kv_blocks, use.block_size) == (3, 0.8, 99, 16)
    assert use.busy_shares == {"0": pytest.approx(2.0 / 20), "1": pytest.approx(4.0 / 20)}
    assert use.exposed_share == pytest.approx(0.4 / 6.4)


def test_devices_that_count_for_themselves_are_told_apart_by_replica_and_rank() -> None:
    def text(busy_s: float) -> str:
        return "\n".join(
            f'albireo:gpu_busy_seconds_total{{engine="{replica}",model_name="m",rank="{rank}"}} {busy_s * (rank + 1)}'
            for replica in (0, 1)
            for rank in (0, 1)
        )

    use = engine_use([parse(text(0.0), 0.0), parse(text(1.0), 10.0)])
    assert use is not None
    assert use.busy_shares == {"0/0": 0.1, "0/1": 0.2, "1/0": 0.1, "1/1": 0.2}
    scrape = parse_gpus(text(1.0), 0.0)
    assert scrape is not None
    assert scrape.busy_s == {"0": 1.0, "1": 2.0, "1/0": 1.0, "1/1": 2.0}


def test_a_counter_that_began_anew_counts_from_there() -> None:
    use = engine_use([parse(metrics((9, 9), 5.0, 0.0), 0.0), parse(metrics((2, 9), 6.0, 0.0), 1.0)])
    assert use is not None
    assert use.total(PREEMPTIONS) == 2
    assert use.total(EXPOSED) == pytest.approx(0.2)


def test_a_server_that_says_nothing_leaves_nothing() -> None:
    assert engine_use([]) is None
    use = engine_use([parse("", 0.0), parse("", 1.0)])
    assert use is not None
    assert (use.busy_shares, use.exposed_share, use.kv_blocks) == ({}, None, 0)
