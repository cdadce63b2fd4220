"""The pool: outcomes in any order, deadlines by a clock of the test's, threads that do not come back."""

import json
import select
import threading
from collections.abc import Iterator

import pytest
from model_tokenizer import compiler

from albireo import limits
from albireo.grammar.compile_pool import TOO_SLOW, CompilePool, Done, Job, StuckError
from albireo.grammar.compiler import GrammarError


class SlowCompiler:
    """Comes back when told to: never succeeds, says whose turn it was."""

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.begun: list[str] = []

    def compile(self, kind: str, source: str) -> None:
        self.begun.append(source)
        gate = self.gates.setdefault(source, threading.Event())
        assert gate.wait(30)
        if source == "panic":
            raise BaseException("a panic")
        raise GrammarError(f"no {source}")


class Pool:
    """A pool of `SlowCompiler` and a clock that stands."""

    def __init__(self, num_threads: int = 2) -> None:
        self.now_ns = 0
        self.compiler = SlowCompiler()
        self.pool = CompilePool(self.compiler, lambda: self.now_ns, num_threads)  # type: ignore[arg-type]

    def submit(self, *sources: str) -> None:
        for source in sources:
            self.compiler.gates.setdefault(source, threading.Event())
            self.pool.submit(Job("regex", source))

    def finish(self, source: str) -> list[Done]:
        """Lets it end, waits for the wake-up that follows."""
        self.compiler.gates[source].set()
        assert select.select([self.pool.wake_fd], [], [], 30)[0]
        return self.pool.collect()

    def pass_deadline(self) -> list[Done]:
        self.now_ns += int(limits.GRAMMAR_COMPILE_TIMEOUT_S * 1e9) + 1
        return self.pool.collect()


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    for gate in pool.compiler.gates.values():
        gate.set()


def problems(outcomes: list[Done]) -> dict[str, str]:
    return {done.job.source: done.problem for done in outcomes}


def test_no_more_jobs_run_than_there_are_threads_and_each_is_done_once(pool: Pool) -> None:
    pool.submit("a", "b", "c", "a", "c")
    assert problems(pool.finish("b")) == {"b": "no b"}
    assert problems(pool.finish("c")) == {"c": "no c"}
    assert problems(pool.finish("a")) == {"a": "no a"}
    assert sorted(pool.compiler.begun) == ["a", "b", "c"] and not pool.pool.is_busy


def test_a_panic_of_the_library_refuses_its_job_alone(pool: Pool) -> None:
    pool.submit("panic", "a")
    assert problems(pool.finish("panic")) == {"panic": "it cannot be compiled (BaseException)"}
    assert problems(pool.finish("a")) == {"a": "no a"}


def test_a_cancelled_job_is_never_begun(pool: Pool) -> None:
    pool.submit("a", "b", "c", "d")
    pool.pool.cancel(Job("regex", "c"))
    pool.pool.cancel(Job("regex", "a"))
    assert problems(pool.finish("a")) == {"a": "no a"}
    assert problems(pool.finish("d")) == {"d": "no d"}
    assert "c" not in pool.compiler.begun


def test_what_takes_too_long_is_refused_and_makes_room_for_the_next(pool: Pool) -> None:
    pool.submit("a", "b", "c")
    assert pool.pool.collect() == []
    assert problems(pool.pass_deadline()) == {"a": TOO_SLOW, "b": TOO_SLOW}
    assert problems(pool.finish("c")) == {"c": "no c"}


def test_what_was_too_slow_is_refused_at_once_while_its_thread_still_runs_and_tried_again_after(pool: Pool) -> None:
    pool.submit("a")
    pool.pass_deadline()
    pool.submit("a")
    assert select.select([pool.pool.wake_fd], [], [], 30)[0]
    assert problems(pool.pool.collect()) == {"a": TOO_SLOW} and pool.compiler.begun == ["a"]
    assert pool.finish("a") == []
    pool.submit("a")
    assert problems(pool.finish("a")) == {"a": "no a"}


def test_too_many_threads_that_do_not_come_back_end_the_process_but_late_ones_are_forgiven(pool: Pool) -> None:
    pool.submit("a", "b", "c", "d")
    pool.pass_deadline()
    assert pool.finish("a") == []
    pool.submit("e")
    with pytest.raises(StuckError, match="3 grammars"):
        pool.pass_deadline()


def test_a_long_chain_of_objects_in_objects_has_stack_enough() -> None:
    chain = {str(i): {"properties": {"": {"$ref": f"#/$defs/{i + 1}"}}, "required": [""]} for i in range(2000)}
    job = Job("json_schema", json.dumps({"$ref": "#/$defs/0", "$defs": chain | {"2000": {}}}))
    pool = CompilePool(compiler(), lambda: 0, 1)
    pool.submit(job)
    assert select.select([pool.wake_fd], [], [], 30)[0]
    (done,) = pool.collect()
    assert done.problem == "" and done.matcher is not None
