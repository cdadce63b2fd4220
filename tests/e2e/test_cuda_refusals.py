"""`--device cuda`: flags that contradict each other, and machines without CUDA, are refused in one line."""

import subprocess
import sys

import pytest
import torch


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cuda", "--gpu-memory-utilization", "1.5"],
            "--gpu-memory-utilization 1.5 is out of range: above 0 and up to 1",
        ),
        (["cuda", "--gpu-memory-utilization", "nan"], "--gpu-memory-utilization nan is out of range"),
        (["cuda", "--cpu-threads", "2"], "--cpu-threads is for --device cpu, not for cuda"),
        (["cuda", "--null-step-ms", "1"], "--null-step-ms is for --device null, not for cuda"),
        (["cuda", "-tp", "2", "--sampling-mode", "local"], "--sampling-mode local is for --device cpu"),
        (["cuda", "-tp", "2", "--collectives", "shm"], "--collectives shm is for --device cpu"),
        (["cuda", "-tp", "2", "--collectives", "gloo"], "add --enforce-eager"),
        (["cpu", "--enforce-eager"], "--enforce-eager is for --device cuda, not for cpu"),
        (["null", "--gpu-memory-utilization", "0.5"], "--gpu-memory-utilization is for --device cuda, not for null"),
        (["cpu", "--collectives", "nccl"], "--collectives nccl is for --device cuda, not for cpu"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    done = serve("--device", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.e2e
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_cuda_says_so_and_what_to_do() -> None:
    done = serve("--device", "cuda")
    assert done.returncode == 3
    *_, last = done.stderr.splitlines()
    assert "CUDA" in last
    assert "--device cpu" in last
    assert "Traceback" not in done.stderr


def test_the_cuda_device_s_modules_need_no_cuda_to_be_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import albireo.gpu_worker.cuda.device"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
