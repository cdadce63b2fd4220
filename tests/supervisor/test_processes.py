"""Processes that start, wait to be started, and die while they do."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from albireo.config import GrammarConfig, SchedulerConfig, SegmentFds
from albireo.supervisor.child_process import Child, ChildSpec, Spare
from albireo.supervisor.processes import Processes

GRAMMAR = GrammarConfig(
    name="grammar-0",
    run_dir="/nowhere",
    log_level="info",
    scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=128),
    segments=SegmentFds(plan_ring=-1, token_rings=(), stats=-1),
    tokenizer_path="",
    vocab_size=8,
    eos_token_ids=(),
)
WAITS = ChildSpec("json.tool", GRAMMAR)
"""Reads its stdin to the end."""


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes(zmq.Poller(), None)
    yield made
    for child in made:
        made.remove(child)


def test_a_start_that_is_due_in_a_minute_does_not_keep_the_loop_asleep(processes: Processes) -> None:
    assert processes.due_in_s(0.25) == 0.25
    processes.start([WAITS], delay_s=60)
    assert processes.due_in_s(0.25) == 0.25
    processes.start([WAITS], delay_s=0.1)
    assert 0 < processes.due_in_s(0.25) <= 0.1
    time.sleep(0.1)
    assert processes.due_in_s(0.25) == 0


def _end(child: Child) -> str:
    how = child.ending()
    child.bury()
    return how


def test_a_spare_that_dies_in_the_moment_in_which_it_is_needed_is_a_death_like_others() -> None:
    spare = Spare(WAITS)
    os.kill(spare.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, spare.process.pid, os.WEXITED | os.WNOWAIT)
    assert _end(Child(WAITS, spare)) == "was killed by SIGKILL"


def test_a_spare_that_was_stopped_goes_on_when_it_is_needed() -> None:
    spare = Spare(WAITS)
    os.kill(spare.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, spare.process.pid, os.WSTOPPED)
    child = Child(WAITS, spare)
    os.waitid(os.P_PID, child.process.pid, os.WCONTINUED)
    child.bury()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (40, "signal 40")])
def test_how_it_was_killed_can_be_said_of_every_signal(number: int, name: str) -> None:
    child = Child(WAITS)
    os.kill(child.process.pid, number)
    assert _end(child) == f"was killed by {name}"


SUPERVISOR = """
    import sys, time
    from albireo.supervisor import child_process
    from test_processes import GRAMMAR

    spec = child_process.ChildSpec("import_for_ever", GRAMMAR, preload="x")
    started = child_process.Spare(spec) if sys.argv[1] == "spare" else child_process.Child(spec)
    print(started.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["spare", "child"])
def test_what_is_still_importing_dies_with_its_supervisor(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "import_for_ever.py").write_text(f"open({str(mark)!r}, 'x')\nimport time\ntime.sleep(600)\n")
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-c", textwrap.dedent(SUPERVISOR), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as supervisor:
        assert supervisor.stdout is not None
        pidfd = os.pidfd_open(int(supervisor.stdout.readline()))
        try:
            while not mark.exists():
                time.sleep(0.01)
            supervisor.kill()
            assert select.select([pidfd], [], [], 30)[0], "it lives"
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            supervisor.kill()


def test_one_whose_supervisor_died_before_its_first_instruction_runs_none_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "albireo.child_main", "this"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
        output, _ = child.communicate()
    assert (child.returncode, output) == (1, b"")
