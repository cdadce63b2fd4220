from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench_fake_server import FakeServer, running
from bench_tokenizers import byte_level

from albireo.bench.outcome import RequestOutcome
from albireo.bench.plot import check_plot, token_times_s
from albireo.bench.settings import SettingsError
from albireo.cli import build_parser, run_bench


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with running(FakeServer(root=str(tmp_path))) as fake:
        yield fake


@pytest.mark.parametrize(("output_len", "fail_every"), [(5, 0), (1, 0), (5, 1), (5, 2)])
def test_a_run_is_drawn_whatever_there_is_of_it(
    server: FakeServer, tmp_path: Path, output_len: int, fail_every: int
) -> None:
    server.fail_every = fail_every
    path = tmp_path / "new" / "picture.png"
    flags = ["bench", "serve", "--base-url", server.url, "--num-prompts", "4", "--input-len", "12", "--plot", str(path)]
    code = run_bench(build_parser().parse_args([*flags, "--output-len", str(output_len)]), [])
    assert code == (1 if fail_every else 0)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_tokens_are_placed_when_their_chunks_came() -> None:
    merged = RequestOutcome(10**9, 3 * 10**9, output_tokens=6, ttft_ns=10**9, itl_ns=[5 * 10**8, 10**8])
    times, weights = token_times_s([merged], first_ns=10**9)
    assert np.allclose(times, [1.0, 1.5, 1.6])
    assert weights.tolist() == [2.0, 2.0, 2.0]


def test_a_missing_matplotlib_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'albireo\[plot\]'"):
        check_plot("x.png")
