"""The server on a GPU, with graphs, without, and with ranks that share the GPU: the CPU's answers, in float32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from server import Server
from test_tensor_parallel_server import answers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cuda") / "qwen3", "qwen3")


def start(path: Path, device: str, *arguments: str) -> Server:
    flags = ["--model", str(path), "--device", device, "--kv-cache-bytes", "64M", "--max-model-len", "512"]
    return Server(*flags, "--max-num-seqs", "8", *arguments)


@pytest.fixture(scope="module")
def expected(path: Path) -> list[object]:
    with start(path, "cpu") as server:
        return answers(server)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--enforce-eager", "--run-ahead", "0"],
        ["-tp", "2", "--collectives", "gloo", "--enforce-eager"],
        ["-tp", "2", "--collectives", "gloo", "--enforce-eager", "--sampling-mode", "gathered"],
    ],
    ids=" ".join,
)
def test_the_gpu_answers_as_the_cpu_does(path: Path, expected: list[object], arguments: list[str]) -> None:
    with start(path, "cuda", *arguments) as server:
        assert answers(server) == expected
        if "-tp" in arguments:
            assert "device 2 x cuda" in "\n".join(server.lines)
        assert server.metric("albireo:gpu_busy_seconds_total", rank="0") > 0
    assert server.wait() == 0


def test_a_cache_that_holds_no_longest_sequence_is_refused_with_the_numbers(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    for file in path.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((path / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 28}))
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", "--model", str(folder), "--device", "cuda"]
    limits = ["--max-model-len", str(1 << 21), "--gpu-memory-utilization", "0.02", "--max-num-seqs", "2"]
    done = subprocess.run([*command, *limits], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    for part in ("the GPU has", "weights take", "--gpu-memory-utilization 0.02", "lower --max-model-len"):
        assert part in last, done.stderr
