"""What the doctor makes of a machine, without asking this one."""

from pathlib import Path

import msgspec
import pytest

from albireo.doctor.examine import cuda_fit_checks, engine_checks, gpu_checks, machine_checks, package_checks
from albireo.doctor.fit import GPU_STEP_BYTES, compute_fit
from albireo.doctor.machine import read_cgroup_limit, read_cpu_quota, read_machine
from albireo.doctor.probe import Driver, Gpu, Probe
from albireo.doctor.report import size
from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.serve import DEMO_MODEL

GIB = 2**30
PACKAGES: dict[str, str | None] = {"torch": "2", "nvidia-ml-py": "12", "matplotlib": "3", "llguidance": "1"}
GPU = Gpu("H100", total_bytes=80 * GIB, free_bytes=79 * GIB, capability="9.0")


def probe(**fields: object) -> Probe:
    found = Probe(PACKAGES, "12.8", None, (GPU,), None, True, 96, True)
    return msgspec.structs.replace(found, **fields)


def engine(**flags: object) -> EnginePlan:
    arguments = EngineArgs(str(DEMO_MODEL), kv_cache_bytes=64 * 2**20, device="cpu")
    return plan_engine(msgspec.structs.replace(arguments, **flags), num_cpus=2)


def gpu_engine() -> EnginePlan:
    return engine(device="cuda", kv_cache_bytes=None)


def test_a_cgroup_s_limits_are_read_and_none_is_none(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path) is None
    assert read_cgroup_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert read_cpu_quota(tmp_path) == 1.5
    assert read_cgroup_limit(tmp_path) == GIB
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert read_cpu_quota(tmp_path) is None
    assert read_cgroup_limit(tmp_path) is None


def test_a_machine_without_shared_memory_or_with_tight_limits_is_told_so() -> None:
    machine = msgspec.structs.replace(read_machine(), cores=4, cpu_quota=None, open_files_limit=None, has_memfd=True)
    assert machine_checks(machine) == []
    (check,) = machine_checks(msgspec.structs.replace(machine, has_memfd=False))
    assert check.grade == "problem"
    tight = machine_checks(msgspec.structs.replace(machine, cpu_quota=1.5, open_files_limit=256))
    assert {(check.topic, check.grade) for check in tight} == {("open files", "note"), ("cores", "note")}
    assert "--cpu-threads 1" in {check.advice for check in tight}


def test_the_cache_on_the_cpu_is_what_the_plan_says() -> None:
    plan = engine()
    fit = compute_fit(plan, ())
    assert fit.kv_cache_bytes == plan.kv_cache_bytes
    assert fit.kv_cache_tokens == fit.kv_cache_bytes // fit.kv_bytes_per_token
    assert fit.max_len_sequences == fit.kv_cache_tokens / fit.max_model_len
    assert not fit.is_estimate
    two = compute_fit(engine(tensor_parallel_size=2), ())
    assert (two.ranks, two.kv_cache_tokens) == (2, fit.kv_cache_tokens)


def test_the_cache_of_ranks_that_hold_the_same_kv_head_is_counted_as_often() -> None:
    plan = engine(tensor_parallel_size=4, cpu_threads=4)
    heads = plan.checkpoint.model.num_kv_heads
    assert heads < 4
    one, fit = compute_fit(engine(), ()), compute_fit(plan, ())
    assert fit.kv_bytes_per_token == one.kv_bytes_per_token * 4 // heads
    assert fit.kv_cache_tokens == plan.kv_cache_bytes * 4 // fit.kv_bytes_per_token


def test_the_cache_of_a_simulated_gpu_is_what_its_spec_has_room_for() -> None:
    plan = engine(device="sim:l40", kv_cache_bytes=None, tensor_parallel_size=2)
    fit = compute_fit(plan, ())
    assert (fit.device, fit.ranks, fit.is_estimate) == ("sim:l40", 2, False)
    assert fit.kv_cache_bytes == 2 * plan.kv_cache_bytes > 60 * GIB
    slow = probe(fast_attention=False, packs_bf16=False)
    assert engine_checks(plan, slow, fit, read_machine()) == [], "this CPU runs no model"
    assert engine_checks(engine(), slow, fit, read_machine())


def test_the_cache_on_a_gpu_is_what_weights_others_and_steps_leave() -> None:
    fit = compute_fit(gpu_engine(), (GPU,))
    assert fit.is_estimate
    assert fit.kv_cache_bytes == int(80 * GIB * 0.9) - 1 * GIB - fit.weights_bytes - GPU_STEP_BYTES
    full = msgspec.structs.replace(GPU, free_bytes=GIB)
    nothing = compute_fit(gpu_engine(), (full,))
    assert nothing.kv_cache_bytes == 0
    (check,) = cuda_fit_checks(gpu_engine(), probe(gpus=(full,)), nothing)
    assert (check.topic, check.grade) == ("model", "problem")


def test_a_gpu_that_cannot_be_used_matters_only_where_it_is_wanted() -> None:
    absent = probe(no_cuda="no CUDA here", gpus=())
    assert gpu_checks(absent, engine()) == []
    assert [check.grade for check in gpu_checks(absent, gpu_engine())] == ["problem"]
    unused = probe(no_cuda="no CUDA here", gpus=(), driver=Driver("570", ("H100",)))
    (check,) = gpu_checks(unused, engine())
    assert (check.grade, check.text) == ("note", "H100 is there and cannot be used: no CUDA here")


@pytest.mark.parametrize(
    ("package", "advice"),
    [("matplotlib", "pip install 'albireo[plot]'"), ("llguidance", "pip install llguidance")],
)
def test_a_missing_package_is_named_with_what_installs_it(package: str, advice: str) -> None:
    assert package_checks(probe()) == []
    (check,) = package_checks(probe(packages=PACKAGES | {package: None}))
    assert package in check.text
    assert (check.grade, check.advice) == ("note", advice)


def test_sizes_are_readable() -> None:
    assert [size(0), size(1536), size(5 * 2**30), size(2**50)] == ["0 bytes", "1.5 KiB", "5.0 GiB", "1024.0 TiB"]
