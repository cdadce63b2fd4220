"""`albireo-run serve --device sim:...`: all processes, no model, in the time that GPUs would take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from server import Server, eventually

from albireo.checkpoint import read_checkpoint
from albireo.serve import DEMO_MODEL
from albireo.sim.roofline import Roofline, StepWork
from albireo.sim.spec import encode_spec, read_spec

pytestmark = pytest.mark.e2e

NUM_TOKENS = 30
BODY = {"model": "albireo-demo", "prompt": [7] * 100, "max_tokens": NUM_TOKENS, "seed": 3}


@pytest.fixture
def slow_spec(tmp_path: Path) -> Path:
    """An H100 of a thousandth of its memory bandwidth: a step of the demo model takes milliseconds."""
    spec = read_spec("h100")
    path = tmp_path / "slow.toml"
    path.write_text(encode_spec(replace(spec, name="slow", memory_bandwidth=spec.memory_bandwidth / 1000)))
    return path


def test_a_request_s_steps_take_on_two_ranks_what_the_roofline_says(slow_spec: Path) -> None:
    model = read_checkpoint(str(DEMO_MODEL), check_weights=False).model
    roofline = Roofline(model, 2, "bfloat16", read_spec(str(slow_spec)))
    steps = [StepWork.prefill(1, 100), *(StepWork.decode(1, context) for context in range(101, 100 + NUM_TOKENS))]
    expected_s = sum(roofline.step(work).total for work in steps)
    with Server("--device", f"sim:{slow_spec}", "-tp", "2", "--kv-cache-bytes", "16G") as server:
        assert "device 2 x sim:slow" in "\n".join(server.lines)
        answer = server.post("/v1/completions", BODY)
        assert answer["usage"]["completion_tokens"] == NUM_TOKENS
        assert answer["choices"][0]["text"].isprintable()

        def busy_s(rank: int) -> float:
            return server.metric("albireo:gpu_busy_seconds_total", rank=str(rank), simulated="true")

        # run-ahead may have planned past the end by then; nothing runs behind max_tokens
        assert eventually(lambda: busy_s(0) == pytest.approx(expected_s, rel=1e-5))
        assert busy_s(1) == pytest.approx(expected_s, rel=1e-5)
        assert eventually(lambda: server.metric("albireo:energy_joules_total", rank="0", simulated="true") > 0)
        # what the cache has, and beside it a GiB and what a small model needs
        used_gib = server.metric("albireo:gpu_memory_used_bytes", rank="1", simulated="true") / 2**30
        assert 9.0 < used_gib < 9.5
    assert server.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "sim:h101"], 2, "--device sim:h101: no preset 'h101': there are a100, b200, h100, h200, l40"),
        (["--device", "sim:h100", "--null-step-ms", "1"], 2, "--null-step-ms is for --device null, not for sim"),
        (["--device", "sim:h100", "--gpu-memory-utilization", "2"], 2, "--gpu-memory-utilization 2 is out of range"),
        (["--device", "sim:h100", "--collectives", "nccl"], 2, "--collectives nccl is for --device cuda, not for sim"),
        (["--device", "sim:h100", "--collectives", "gloo"], 2, "--collectives gloo is not for --device sim"),
        (["--device", "sim:h100", "--cpu-threads", "2"], 2, "--cpu-threads is for --device cpu, not for sim"),
        (["--device", "sim:h100", "-tp", "3"], 2, "tensor-parallel size 3 does not divide"),
        (["--device", "sim:h100", "--kv-cache-bytes", "80G"], 3, "--kv-cache-bytes 85899345920 is more than 1 x sim:h"),
    ],
)
def test_what_a_simulated_device_cannot_do_is_refused_in_one_line(
    arguments: list[str], code: int, message: str
) -> None:
    done = serve(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    for file in DEMO_MODEL.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
             "num_hidden_layers": 80, "head_dim": 128, "layer_types": ["full_attention"] * 80}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    done = serve(str(tmp_path), "--device", "sim:h100")
    assert done.returncode == 3
    assert "the model does not fit: --gpu-memory-utilization 0.9 of sim:h100 is 71.7 GiB; each of 1 has 79.6 GiB, " in (
        done.stderr
    )
    assert "raise --tensor-parallel-size" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def serve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
