"""The supervisor with processes that only speak with it: who dies, or stops, and when."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from albireo import sockets
from albireo.config import GrammarConfig, SegmentFds, process_names
from albireo.engine_args import EngineArgs, plan_engine
from albireo.engine_segments import create_segments
from albireo.limits import GRAMMAR_RESTARTS_PER_MINUTE
from albireo.listener import ListenAddress
from albireo.messages import EngineReady, FromSupervisor, GrammarDown, Progress, ReplicaDown, encode
from albireo.notify import Notifier
from albireo.run_directory import RunDirectory
from albireo.serve import DEMO_MODEL, ServeArgs, child_specs
from albireo.shm.routes import Routes
from albireo.shm.stats import GAUGES, EngineStats
from albireo.signal_pipe import SignalPipe
from albireo.startup_display import StartupDisplay
from albireo.supervisor import engine_memory
from albireo.supervisor.child_process import Child, ChildSpec
from albireo.supervisor.deaths import EngineStopped
from albireo.supervisor.engine_memory import EngineMemory
from albireo.supervisor.supervisor import Supervisor

HERE = Path(__file__).parent


class Display(StartupDisplay):
    """What was said."""

    def __init__(self) -> None:
        super().__init__("", interactive=False)
        self.lines: list[str] = []

    def progress(self, process: str, stage: str, fraction: float) -> None:
        """Says nothing."""

    def note(self, message: str) -> None:
        self.lines.append(message)

    error = note


class CountingNotifier(Notifier):
    """How often the watchdog was to be fed."""

    num_fed = 0

    def watchdog(self) -> None:
        self.num_fed += 1


class Engine:
    """A supervisor of scripted processes, ready."""

    def __init__(
        self,
        supervisor: Supervisor,
        display: Display,
        run_dir: str,
        notifier: "CountingNotifier",
        segments: Sequence[SegmentFds],
    ) -> None:
        """`segments`: of each replica."""
        self.segments = segments
        self.notifier = notifier
        self.supervisor = supervisor
        self.display = display
        self.run_dir = run_dir

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.supervisor.pids()[name], number)

    def watch_until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Raises EngineStopped."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, self.display.lines
            self.supervisor.watch()

    def says(self, text: str, times: int = 1) -> bool:
        return sum(text in line for line in self.display.lines) >= times


def specs_of(
    script: str, num_workers: int, run_dir: str, num_replicas: int = 1
) -> tuple[list[ChildSpec], list[EngineMemory], list[SegmentFds]]:
    plan = plan_engine(
        EngineArgs(str(DEMO_MODEL), device="null", tensor_parallel_size=num_workers, max_num_seqs=8), num_cpus=2
    )
    args = ServeArgs(
        engine=EngineArgs(str(DEMO_MODEL)),
        address=ListenAddress("127.0.0.1", 0),
        served_model_names=(),
        api_keys=(),
        root_path="",
        access_log=False,
        shutdown_timeout_s=1,
        worker_timeout_s=5,
        num_frontends=1,
        max_logprobs=0,
        chat_template=None,
        generation_config="auto",
        log_level="info",
    )
    replicas = [
        create_segments(
            plan.scheduler,
            num_workers,
            process_names(num_workers, has_grammar=True, replica=number),
            0 if number else num_replicas,
        )
        for number in range(num_replicas)
    ]
    path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    environment = {"PYTHONPATH": path, "ALBIREO_SCRIPT": script}
    given = child_specs(args, plan, ("demo",), None, run_dir, replicas, replicas[0].stats)
    for number, segments in enumerate(replicas):
        grammar = GrammarConfig(
            name=f"grammar-{number}",
            replica=number,
            run_dir=run_dir,
            log_level="info",
            scheduler=plan.scheduler,
            segments=segments,
            tokenizer_path="",
            vocab_size=8,
            eos_token_ids=(),
        )
        given.append(ChildSpec("", grammar, fds=(segments.stats, segments.flight[grammar.name])))
    specs = [replace(spec, module="scripted_child", environment=environment) for spec in given]
    memories = [
        EngineMemory(segments, plan.scheduler, num_workers, args.worker_timeout_s, number, num_replicas)
        for number, segments in enumerate(replicas)
    ]
    return specs, memories, replicas


@contextmanager
def running(script: str = "", num_workers: int = 1, num_replicas: int = 1) -> Iterator[Engine]:
    with ExitStack() as stack:
        signals = stack.enter_context(SignalPipe())
        run_dir = stack.enter_context(RunDirectory())
        specs, memories, segments = specs_of(script, num_workers, run_dir, num_replicas)
        display = Display()
        notifier = CountingNotifier()
        supervisor = Supervisor(run_dir, signals, display, 1, memories, notifier)
        stack.callback(supervisor.stop)
        supervisor.start(specs)
        yield Engine(supervisor, display, run_dir, notifier, segments)


@pytest.fixture(autouse=True)
def records_go_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))


@pytest.mark.parametrize("name", ["worker-0", "coordinator-0", "frontend-0"])
def test_another_takes_the_place_of_one_that_dies(name: str) -> None:
    with running() as engine:
        engine.kill(name)
        engine.watch_until(lambda: engine.says(f"{name} (pid {engine.supervisor.pids().get(name)}) is ready"))


def test_a_frontend_that_stops_before_its_loop_turns_is_replaced() -> None:
    with running("frontend-0=stops") as engine:
        engine.supervisor._start_timeout_s = 2.0  # else four times the first start, whatever that was
        engine.kill("frontend-0")
        engine.watch_until(lambda: engine.says("was not ready after"))
        assert not engine.says("was not ready after", times=2)


def test_a_rank_that_fails_again_and_again_is_given_up_though_another_is_ready_each_time() -> None:
    with running("worker-1=fails", num_workers=2) as engine:
        engine.kill("worker-0")
        with pytest.raises(EngineStopped):
            engine.watch_until(lambda: engine.says("worker-1", times=6))
        assert engine.says("that was too often")


def test_a_coordinator_that_dies_while_it_waits_for_workers_has_not_failed_to_start() -> None:
    with running("worker-0=stops") as engine:
        engine.kill("worker-0")
        engine.watch_until(lambda: engine.says("the last steps"))  # the coordinator has halted
        before = engine.supervisor.pids()["coordinator-0"]
        engine.kill("coordinator-0")
        engine.watch_until(lambda: engine.says("another takes its place"))
        assert engine.supervisor.pids().get("coordinator-0", before) != before  # at once


def test_the_watchdog_starves_when_every_process_answers_and_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_memory, "ENGINE_PROGRESS_TIMEOUT_NS", 1_000_000_000)
    with running("coordinator-0=waits") as engine:
        engine.supervisor.watch()
        assert engine.notifier.num_fed == 1
        engine.watch_until(lambda: engine.says("the engine has work and confirms no step"))
        num_fed = engine.notifier.num_fed
        for _ in range(10):
            engine.supervisor.watch()
        assert engine.notifier.num_fed == num_fed


def test_a_replica_that_does_not_go_on_gets_other_workers_while_the_others_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_memory, "ENGINE_PROGRESS_TIMEOUT_NS", 1_000_000_000)
    with running("coordinator-1=waits", num_replicas=2) as engine:
        pids = engine.supervisor.pids()
        engine.watch_until(
            lambda: engine.says("replica 1 has work and confirms no step; all its ranks are started again")
        )
        engine.watch_until(lambda: engine.says("worker-1 (pid"))
        now = engine.supervisor.pids()
        assert {name for name, pid in pids.items() if now[name] != pid} == {"worker-1"}
        assert not engine.says("the engine has work and confirms no step"), "systemd would end the others too"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, FromSupervisor]]:
    """What processes have been told, by their identities."""
    told: list[tuple[str, FromSupervisor]] = []
    tell = Supervisor._tell

    def tell_and_note(self: Supervisor, child: Child, message: FromSupervisor) -> None:
        told.append((child.identity, message))
        tell(self, child, message)

    monkeypatch.setattr(Supervisor, "_tell", tell_and_note)
    return told


def test_frontends_hear_that_the_only_engine_does_not_compute_and_when_it_does_again(
    told: list[tuple[str, FromSupervisor]],
) -> None:
    with running() as engine:
        (ready,) = [message for name, message in told if name == "frontend-0"]
        told.clear()
        engine.kill("worker-0")
        engine.watch_until(lambda: ("frontend-0", ready) in told)
        waits = EngineReady(8, computes=False)
        assert [each for name, each in told if name == "frontend-0"] == [ReplicaDown(0), waits, ready]


def test_another_coordinator_hears_that_there_is_no_grammar_process_for_now(
    told: list[tuple[str, FromSupervisor]],
) -> None:
    with running() as engine:
        for number in range(1, GRAMMAR_RESTARTS_PER_MINUTE + 2):
            engine.kill("grammar-0")
            engine.watch_until(lambda n=number: engine.says("grammar-0", times=n))  # type: ignore[misc]
        engine.kill("coordinator-0")
        engine.watch_until(
            lambda: any("coordinator-0 (pid" in line and "is ready" in line for line in engine.display.lines)
        )
        assert ("coordinator-0.1", GrammarDown(0, restarts=False)) in told


def test_a_dead_coordinator_has_no_requests_and_no_socket_and_what_it_counted_stays() -> None:
    with running(num_replicas=2) as engine:
        stats = [EngineStats(segments.stats) for segments in engine.segments]
        for each in stats:
            for name in (*GAUGES, "prompt_tokens"):
                each.engine[name] = 7
        sockets_of_dead = [Path(engine.run_dir, name) for name in ("coordinator-1.sock", "grammar-1.sock")]
        others = [Path(engine.run_dir, name) for name in ("coordinator-0.sock", "coordinator-1.1.sock")]
        for path in (*sockets_of_dead, *others):
            path.touch()
        engine.kill("coordinator-1")
        engine.watch_until(lambda: engine.says("coordinator-1 (pid"))
        assert {name: int(stats[1].engine[name][0]) for name in GAUGES} == dict.fromkeys(GAUGES, 0)
        assert int(stats[1].engine["prompt_tokens"][0]) == 7
        assert int(stats[0].engine["num_running"][0]) == 7
        assert not any(path.exists() for path in sockets_of_dead)
        assert all(path.exists() for path in others)


def test_a_dead_frontend_s_requests_are_no_replica_s_work() -> None:
    with running(num_replicas=2) as engine:
        loads = Routes(engine.segments[0].routes, 2, 0).loads
        for load in loads:
            load.say(3, 1000)
        engine.kill("frontend-0")
        engine.watch_until(lambda: engine.says("frontend-0 (pid"))
        assert [(load.num_sequences, load.num_prompt_tokens) for load in loads] == [(0, 0)] * 2


def test_workers_and_coordinator_that_die_together_leave_one_record() -> None:
    with running() as engine:
        engine.kill("worker-0")
        engine.kill("coordinator-0")
        engine.watch_until(lambda: engine.says("is ready after", times=3))  # and a grammar process
        assert engine.says("the last steps: albireo-run trace")
        assert not engine.says("could not be saved")


def test_nothing_is_left_of_deaths_but_what_lives() -> None:
    with running(num_workers=2) as engine:
        engine.kill("worker-0")
        engine.watch_until(lambda: engine.says("worker-1 (pid", times=1) and engine.says("is ready after", times=2))
        num_fds = len(os.listdir("/proc/self/fd"))
        for number in range(1, 4):
            engine.kill("worker-1")
            engine.kill("frontend-0")
            engine.watch_until(lambda n=number: engine.says("is ready after", times=2 + 3 * n))  # type: ignore[misc]
        assert len(os.listdir("/proc/self/fd")) == num_fds
        assert child_states() == ["living"] * len(engine.supervisor.pids())
    assert child_states() == []


def child_states() -> list[str]:
    """Of this process's children."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(parent) == os.getpid():
            states.append("dead" if state == "Z" else "living")
    return states


@contextmanager
def somebody_talks(run_dir: str) -> Iterator[None]:
    """All the time, to the supervisor."""
    is_over = threading.Event()

    def talk() -> None:
        with zmq.Context() as context, sockets.open_socket(context, zmq.DEALER) as socket:
            socket.setsockopt(zmq.IDENTITY, b"somebody")
            socket.connect(sockets.control_address(run_dir))
            while not is_over.wait(0.005):
                socket.send(encode(Progress("talking", 0.0)))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_last_words_are_heard_though_others_talk() -> None:
    with running("worker-0=says-why") as engine, somebody_talks(engine.run_dir):
        engine.kill("worker-0")
        engine.watch_until(lambda: engine.says("exited with code 9"))
        assert engine.says("exited with code 9: these are its last words")
