"""Energy and busy time of the server's GPUs, in `bench serve`."""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_fake_server import FakeServer, running
from bench_tokenizers import byte_level

from albireo.bench import gpu_use as module
from albireo.bench.cli import add_serve_arguments, run_serve
from albireo.bench.gpu_use import GpuUse, Scrape, gpu_use, parse

ROWS = ("GPU energy (J)", "Joules per output token", "GPU busy with steps")


class FakeGpus:
    """Two GPUs that draw 100 W and 200 W and work half of the time, read whenever /metrics is asked for the third time,
    the sixth and so on; fields may be changed."""

    def __init__(self) -> None:
        self.born_s = time.monotonic()
        self.shown: tuple[str, ...] = ("energy_joules_total", "gpu_busy_seconds_total", "gpu_reading_age_seconds")
        self.energy_ranks: tuple[int, ...] = (0, 1)
        self.max_reads = 100
        self.num_asked = 0
        self.read_s = 0.0

    def text(self) -> str:
        self.num_asked += 1
        now_s = time.monotonic() - self.born_s
        if self.num_asked % 3 == 0 and self.num_asked // 3 <= self.max_reads:
            self.read_s = now_s
        lines = ["# HELP other:thing something else", 'other:thing{a="b"} 1.0']
        for rank in range(2):
            values = {"energy_joules_total": 100.0 * (rank + 1) * self.read_s, "gpu_busy_seconds_total": 0.5 * now_s}
            values["gpu_reading_age_seconds"] = now_s - self.read_s
            for name in self.shown:
                if name != "energy_joules_total" or rank in self.energy_ranks:
                    lines.append(f'albireo:{name}{{engine="0",model_name="m",rank="{rank}"}} {values[name]!r}')
        return "\n".join([*lines, ""])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with running(FakeServer(root=str(tmp_path))) as fake:
        yield fake


@pytest.fixture
def gpus(server: FakeServer) -> FakeGpus:
    fake = FakeGpus()
    server.metrics = fake.text
    return fake


def bench(server: FakeServer, tmp_path: Path) -> dict[str, Any]:
    """The saved record of a run of a third of a second."""
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    load = ["--num-prompts", "4", "--input-len", "12", "--output-len", "40", "--max-concurrency", "1"]
    saved = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "out.json"]
    assert run_serve(parser.parse_args(["--base-url", server.url, *load, *saved])) == 0
    record: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    return record


def test_energy_holds_the_run_and_is_printed_and_saved(
    server: FakeServer, gpus: FakeGpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench(server, tmp_path)
    gpu = record["gpu"]
    assert gpu["num_gpus"] == 2
    assert gpus.num_asked == 6  # until a reading from after the beginning, and one from after the end
    assert record["duration"] <= gpu["energy_s"]
    assert gpu["energy_j"] == pytest.approx(300 * gpu["energy_s"], rel=0.3)  # a request for figures takes a while
    assert gpu["joules_per_output_token"] == gpu["energy_j"] / 160
    assert gpu["busy_share"] == pytest.approx(0.5, rel=0.3)
    printed = capsys.readouterr().out
    assert all(row in printed for row in ROWS)
    assert "of the run, mean of 2" in printed


def test_a_server_without_these_metrics_gets_no_line(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for metrics in (
        None,
        lambda: 'vllm:gpu_energy{rank="0"} 5\n',
        lambda: "\0{{{",
        lambda: "albireo:energy_joules_total",
    ):
        server.metrics = metrics
        assert "gpu" not in bench(server, tmp_path)
        assert not any(row in capsys.readouterr().out for row in ROWS)


def test_busy_time_alone_is_told_alone(
    server: FakeServer, gpus: FakeGpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.shown = ("gpu_busy_seconds_total",)
    assert bench(server, tmp_path)["gpu"].keys() == {"num_gpus", "busy_share"}
    assert [row in capsys.readouterr().out for row in ROWS[:2]] == [False, False]
    assert gpus.num_asked == 2  # nothing to wait for


def test_energy_of_some_gpus_only_is_not_that_of_the_run(server: FakeServer, gpus: FakeGpus, tmp_path: Path) -> None:
    gpus.energy_ranks = (1,)
    assert bench(server, tmp_path)["gpu"].keys() == {"num_gpus", "busy_share"}


def test_energy_that_is_no_longer_read_is_not_told(
    server: FakeServer, gpus: FakeGpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FRESH_TIMEOUT_S", 0.3)
    gpus.max_reads = 1  # for the beginning
    assert bench(server, tmp_path)["gpu"].keys() == {"num_gpus", "busy_share"}


def test_a_server_whose_metrics_fail_after_the_run_gets_no_line(
    server: FakeServer, gpus: FakeGpus, tmp_path: Path
) -> None:
    gpus.shown = ("gpu_busy_seconds_total",)
    server.metrics = lambda: "" if server.bodies else gpus.text()
    assert "gpu" not in bench(server, tmp_path)
    assert gpus.num_asked == 1


def scrape(asked_s: float, energy: dict[str, float], busy: dict[str, float], age_s: float) -> Scrape:
    return Scrape(asked_s, energy, busy, dict.fromkeys(energy, age_s))


def test_figures_are_differences_over_the_times_that_they_belong_to() -> None:
    before = scrape(10.0, {"0": 50.0, "1": 70.0}, {"0": 1.0, "1": 2.0}, age_s=0.25)
    at_end = scrape(20.0, {"0": 900.0, "1": 900.0}, {"0": 7.0, "1": 6.0}, age_s=0.5)
    after = scrape(20.5, {"0": 1050.0, "1": 1070.0}, {"0": 8.0, "1": 8.0}, age_s=0.0)
    assert gpu_use(before, at_end, after) == GpuUse(2, 2000.0, 10.75, 0.5)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_counter_that_began_anew_is_no_figure(rank: str) -> None:
    before = scrape(10.0, {"0": 50.0, "1": 50.0}, {"0": 5.0, "1": 5.0}, age_s=0.0)
    after = scrape(20.0, {"0": 90.0, "1": 90.0} | {rank: 1.0}, {"0": 9.0, "1": 9.0}, age_s=0.0)
    assert gpu_use(before, after, after) == GpuUse(2, None, None, 0.4)
    restarted = scrape(20.0, {"0": 90.0, "1": 90.0}, {"0": 9.0, "1": 9.0} | {rank: 1.0}, age_s=0.0)
    assert gpu_use(before, restarted, restarted) == GpuUse(2, 80.0, 10.0, None)


def test_other_ranks_after_than_before_are_no_figure() -> None:
    before = scrape(10.0, {"0": 50.0}, {"0": 5.0}, age_s=0.0)
    after = scrape(20.0, {"0": 90.0, "1": 90.0}, {"0": 9.0, "1": 9.0}, age_s=0.0)
    assert gpu_use(before, after, after) is None


def test_metrics_are_read_by_rank_whatever_else_is_there() -> None:
    labels = 'engine="0",model_name="a} b,rank=\\"7\\"",rank="0"'
    text = f"# TYPE x gauge\nx 1\nalbireo:energy_joules_total{{{labels}}} 2.5e3\nbroken{{\n"
    assert parse(text, 4.0) == Scrape(4.0, {"0": 2500.0}, {}, {})
    assert parse('albireo:energy_joules_total{rank="0"} nonsense\n', 0.0) is None


def test_what_a_simulator_said_is_known_as_such() -> None:
    lines = [f'albireo:gpu_busy_seconds_total{{rank="0",simulated="true"}} {value}\n' for value in (1.0, 2.0)]
    before, after = (parse(line, asked_s) for asked_s, line in enumerate(lines))
    assert before is not None
    assert after is not None
    assert gpu_use(before, after, after) == GpuUse(1, None, None, 1.0, is_simulated=True)
