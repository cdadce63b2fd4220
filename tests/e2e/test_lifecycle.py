"""Starting, stopping and dying: what is left, and what is said."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server, eventually, processes

from albireo.serve import DEMO_MODEL

pytestmark = pytest.mark.e2e


@pytest.fixture
def runtime_dir(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment whose runtime directory is watched, and is empty again at the end."""
    path = tmp_path / "run"
    path.mkdir()
    shm = set(os.listdir("/dev/shm"))
    yield {"XDG_RUNTIME_DIR": str(path)}
    assert eventually(lambda: not list(path.iterdir())), "sockets were left behind"
    assert set(os.listdir("/dev/shm")) <= shm, "something was left in /dev/shm"


def start(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a server that cannot start."""
    command = [sys.executable, "-m", "albireo.cli", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_every_process_and_leaves_nothing(number: signal.Signals, runtime_dir: dict[str, str]) -> None:
    with Server(env=runtime_dir) as server:
        children = server.children()
        names = ("worker-0", "coordinator-0", "grammar-0", "frontend-0")
        assert set(children) == {f"albireo-{name}" for name in names}
        server.process.send_signal(number)
        assert server.wait() == 0
        assert not {pid for pid, _, _ in processes()} & set(children.values())


def test_only_the_threads_that_compute_take_cores_from_others(runtime_dir: dict[str, str]) -> None:
    def policies(pid: int) -> dict[str, int]:
        """By name: of the main thread (`main`) and of ZeroMQ's."""
        names = {int(path.name): (path / "comm").read_text().strip() for path in Path(f"/proc/{pid}/task").iterdir()}
        return {
            "main" if thread == pid else name: os.sched_getscheduler(thread)
            for thread, name in names.items()
            if thread == pid or name.startswith("ZMQ")
        }

    with Server(env=runtime_dir) as server:
        children = server.children()
        for name in ("albireo-coordinator-0", "albireo-frontend-0"):
            assert set(policies(children[name]).values()) == {os.SCHED_BATCH}
        worker = policies(children["albireo-worker-0"])
        assert worker.pop("main") == os.SCHED_OTHER
        assert set(worker.values()) == {os.SCHED_BATCH}


def test_one_socket_listens_on_the_network(runtime_dir: dict[str, str]) -> None:
    with Server(env=runtime_dir) as server:
        inodes = set()
        for pid in (server.process.pid, *server.children().values()):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                inodes.add(str(entry.readlink()).removeprefix("socket:[").rstrip("]"))
        rows = [line.split() for name in ("tcp", "tcp6", "udp", "udp6") for line in
                Path(f"/proc/net/{name}").read_text().splitlines()[1:]]  # fmt: skip
        listening = {row[1].rpartition(":")[2] for row in rows if row[9] in inodes and row[3] in ("0A", "07")}
        assert {int(port, 16) for port in listening} == {int(server.url.rpartition(":")[2])}


def test_kill_9_on_the_supervisor_leaves_no_process_and_no_shared_memory(runtime_dir: dict[str, str]) -> None:
    with Server(env=runtime_dir) as server:
        children = set(server.children().values())
        server.process.kill()
        assert eventually(lambda: not {pid for pid, _, _ in processes()} & children, timeout_s=30)


def test_a_signal_while_starting_stops_everything(runtime_dir: dict[str, str]) -> None:
    for delay_s in (0.3, 1.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "albireo.cli", "serve", "--port", "0"],
            env={**os.environ, **runtime_dir}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay_s)
        children = {pid for pid, parent, _ in processes() if parent == process.pid}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert eventually(lambda: not {pid for pid, _, _ in processes()} & children, timeout_s=30)  # noqa: B023


def test_a_child_that_cannot_start_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    code, output = start("--port", "0", str(tmp_path / "model"))
    assert code == 3
    last = output.splitlines()[-1]
    assert last.startswith("albireo: frontend-0: ")
    assert "tokenizer" in last
    assert "Traceback" not in output


def test_a_taken_port_is_one_line_and_exit_code_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = start("--port", port)
    assert code == 3
    assert (
        output == f"albireo: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port"
    )


def test_a_missing_model_is_one_line_and_exit_code_3() -> None:
    code, output = start("does/not/exist")
    assert code == 3
    assert "does/not/exist" in output
    assert len(output.splitlines()) == 1


def test_an_unsupported_architecture_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["MambaForCausalLM"]}))
    code, output = start(str(tmp_path / "model"))
    assert code == 3
    assert "MambaForCausalLM" in output
    assert "Qwen3ForCausalLM" in output
    assert len(output.splitlines()) == 1


def test_a_truncated_weight_file_is_found_before_a_process_starts(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1000)
    code, output = start(str(tmp_path / "model"))
    assert code == 3
    assert "model.safetensors" in output
    assert "truncated" in output
    assert len(output.splitlines()) == 1


def test_a_cache_larger_than_the_memory_is_one_line_with_the_numbers() -> None:
    code, output = start("--kv-cache-bytes", "900T")
    assert code == 3
    assert "--kv-cache-bytes" in output
    assert "GiB of memory left" in output
    assert len(output.splitlines()) == 1


def test_a_cache_too_small_for_one_sequence_is_one_line_with_the_numbers() -> None:
    code, output = start("--kv-cache-bytes", "64K", "--max-model-len", "1024")
    assert code == 3
    assert "raise --kv-cache-bytes or lower --max-model-len" in output


def test_a_swap_space_that_does_not_fit_is_refused_with_numbers() -> None:
    code, output = start("--swap-space", "16384", "--device", "cpu")
    assert code == 3
    assert "--swap-space 16384 takes 16384.0 GiB of host memory on all ranks together" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model-path", "x"], "--model-path is SGLang's name; here it is --model"),
        (["--context-length=5"], "--context-length is SGLang's name; here it is --max-model-len"),
        (["--max-num-seqs", "0"], "0 is out of range: between 1 and 4096 is possible"),
        (["--max-num-seqs", "64", "--max-num-batched-tokens", "32"], "must be at least --max-num-seqs"),
        (["--max-model-len", "10000000"], "exceeds the model's"),
        (["-tp", "65"], "65 is out of range: between 1 and 64 is possible"),
        (["-tp", "64"], "needs a thread for each rank, and the"),
        (["-tp", "2", "--cpu-threads", "1"], "needs a thread for each rank, and --cpu-threads 1 are fewer"),
        (["-tp", "5", "--cpu-threads", "5"], "tensor-parallel size 5 does not divide the model's"),
        (["--sampling-mode", "global"], "invalid choice: 'global'"),
        (["--swap-space", "-1"], "--swap-space -1 is out of range: between 0 and 16384 GiB are possible"),
        (["--swap-space", "1e-9"], "--swap-space 1e-09 GiB holds no KV block"),
        (["--kv-cache-bytes", "lots"], "'lots' is no size"),
        (["--kv-cache-bytes", "inf"], "'inf' is no size"),
        (["--replicas", "2", "--replica-size"], "unrecognized arguments: --replica-size"),
        (["--trust-remote-code"], "--trust-remote-code is refused: code in a checkpoint is never run"),
    ],
)
def test_bad_arguments_are_exit_code_2_and_say_what_is_possible(arguments: list[str], text: str) -> None:
    code, output = start(*arguments)
    assert code == 2
    assert text in output
