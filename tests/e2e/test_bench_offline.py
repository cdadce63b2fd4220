"""`bench latency` and `bench throughput`: commands that bring their own engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def bench(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "albireo.cli", "bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    return done.returncode, done.stdout, done.stderr


def self_signed(folder: Path) -> str:
    """A certificate and its key in one file."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1",
         "-subj", "/CN=elsewhere"],
        check=True, capture_output=True,
    )  # fmt: skip
    cert.write_text(cert.read_text() + key.read_text())
    return str(cert)


def test_latency_measures_batches_one_after_another(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    flags = [
        "--batch-size",
        "4",
        "--input-len",
        "8",
        "--output-len",
        "6",
        "--num-iters",
        "3",
        "--num-iters-warmup",
        "1",
    ]
    # what its server is reached by, and the key, are the benchmark's to find out
    where = ["--uds", str(tmp_path / "api.sock"), "--api-key", "k"]
    engine = ["--", "--device", "null", "--null-step-ms", "10", *where]
    code, output, _ = bench("latency", *flags, "--output-json", str(file), *engine)
    assert code == 0
    assert output.startswith("Seconds for a batch of 4, over HTTP, 3 iterations")
    record: dict[str, Any] = json.loads(file.read_text())
    assert set(record) == {"avg_latency", "latencies", "percentiles"}
    assert len(record["latencies"]) == 3
    assert min(record["latencies"]) >= 6 * 0.01  # six steps, each of which sleeps 10 ms
    assert record["avg_latency"] == pytest.approx(sum(record["latencies"]) / 3)
    assert set(record["percentiles"]) == {"10", "25", "50", "75", "90", "99"}


def test_throughput_counts_the_tokens_of_all_prompts(tmp_path: Path) -> None:
    data, file = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    data.write_text("".join(json.dumps({"prompt": "x", "output_tokens": n}) + "\n" for n in (3, 4, 5)))
    flags = ["--dataset-name", "custom", "--dataset-path", str(data), "--num-prompts", "3", "--output-json", str(file)]
    cert = self_signed(tmp_path)
    code, _, error = bench("throughput", *flags, "--", "--device", "null", "--ssl-certfile", cert)
    assert code == 0, error
    record: dict[str, Any] = json.loads(file.read_text())
    assert (record["num_requests"], record["total_num_tokens"]) == (3, 3 + 4 + 5 + 3)
    assert record["tokens_per_second"] == pytest.approx(record["total_num_tokens"] / record["elapsed_time"])


def test_a_model_that_cannot_be_served_is_one_line_and_exit_code_3() -> None:
    code, _, error = bench("latency", "does/not/exist")
    assert code == 3
    assert "does/not/exist" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["latency", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["latency", "--num-iters", "0"], "--num-iters must be at least 1"),
        (["throughput", "--num-prompts", "0"], "--num-prompts must be at least 1"),
        (["throughput", "--dataset-name", "custom"], "--dataset-path"),
    ],
)
def test_flags_that_make_no_sense_are_exit_code_2(arguments: list[str], reason: str) -> None:
    code, _, error = bench(*arguments)
    assert code == 2
    assert reason in error
