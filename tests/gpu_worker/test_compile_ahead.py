import os
import subprocess
import sys
from pathlib import Path

import pytest

from albireo.checkpoint import read_checkpoint
from albireo.config import SamplingMode, SchedulerConfig, SegmentFds, WorkerConfig
from albireo.gpu_worker.compile_ahead import CompileAhead, kernels_ahead

DEMO_MODEL = Path(__file__).parents[2] / "albireo" / "demo_model"


def worker_config(run_dir: Path, rank: int = 0, num_workers: int = 1, mode: SamplingMode = "local") -> WorkerConfig:
    return WorkerConfig(
        name=f"worker-{rank}", run_dir=str(run_dir), log_level="info", scheduler=SchedulerConfig(),
        segments=SegmentFds(-1, (-1,) * num_workers, -1), rank=rank, num_workers=num_workers, sampling_mode=mode,
        collectives="shm", model=read_checkpoint(str(DEMO_MODEL)).model, model_path=str(DEMO_MODEL), device="cpu",
        dtype="float32", kv_cache_bytes=1 << 20, num_threads=1, load_format="safetensors", seed=0,
    )  # fmt: skip


COMPILES = """
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray

from albireo.gpu_worker.kernels.launch import Kernel, compile_in_turns

ARGUMENTS = np.dtype([("at", "<i8")])


def first(arguments: Any) -> None:
    carray(arguments, 1)[0].at = 1


def second(arguments: Any) -> None:
    carray(arguments, 1)[0].at = 2


compile_in_turns(Path(sys.argv[1]), on_first_compile=lambda: print("more will be missing"))
Kernel(first, ARGUMENTS)
Kernel(second, ARGUMENTS)
"""


def test_the_first_kernel_that_the_cache_lacks_is_told_once(tmp_path: Path) -> None:
    script = tmp_path / "compiles.py"
    script.write_text(COMPILES)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(script), str(tmp_path)]
    told = [subprocess.run(command, env=environment, capture_output=True, check=True).stdout for _ in range(2)]
    assert told == [b"more will be missing\n", b""]


def test_helpers_end_when_the_worker_has_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def keep(command: list[str], stdin: int) -> subprocess.Popen[bytes]:
        started.append(popen(command, stdin=stdin))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", keep)
    ahead = CompileAhead(worker_config(tmp_path))
    ahead.start()
    ahead.stop()
    assert [process.returncode for process in started] == [0]


@pytest.mark.parametrize(("rank", "cores"), [(1, 4), (0, 1)])
def test_later_ranks_and_single_cores_start_no_helper(
    rank: int, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a helper was started"))
    CompileAhead(worker_config(tmp_path, rank, num_workers=2)).start()


def test_only_what_the_worker_will_need_is_compiled_ahead(tmp_path: Path) -> None:
    alone = len(kernels_ahead(worker_config(tmp_path)))
    assert len(kernels_ahead(worker_config(tmp_path, num_workers=2, mode="gathered"))) == alone
    assert len(kernels_ahead(worker_config(tmp_path, num_workers=2, mode="local"))) == alone + 2
