"""Compiling beside the loop: a few threads, each grammar within a deadline."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable

import llguidance
from msgspec import Struct

from albireo import limits
from albireo.grammar.compiler import Compiler, GrammarError

STACK_BYTES = 256 << 20
"""Of a thread that compiles, of which only what is touched takes memory: the library recurses from one subschema into
the next. On the usual 8 MiB some hundred required objects, each in the one before, ended the process; with the deepest
chains that MAX_GRAMMAR_CHARS has room for, all of it takes 180 MB."""

TOO_SLOW = f"it takes more than {limits.GRAMMAR_COMPILE_TIMEOUT_S:g} s to compile"


class StuckError(Exception):
    """So many threads compile without an end that the process had better start anew."""


class Job(Struct, frozen=True):
    """A grammar to compile."""

    kind: str
    source: str


class Done(Struct, frozen=True):
    """A job's outcome: a matcher, or why there is none."""

    job: Job
    matcher: llguidance.LLMatcher | None
    problem: str = ""


class CompilePool:
    """Jobs in, outcomes out in whatever order. Used by the main thread; `wake_fd` is readable when there is one.

    A thread that does not come back in time is given up, and its job refused, at once if it comes again meanwhile:
    another thread takes its place. Python cannot stop it.
    """

    def __init__(self, compiler: Compiler, clock_ns: Callable[[], int], num_threads: int) -> None:
        self._compiler = compiler
        self._clock_ns = clock_ns
        self._num_threads = num_threads
        self._waiting: deque[Job] = deque()
        self._running: dict[Job, int] = {}
        """And when each began."""
        self._given_up: set[Job] = set()
        """Whose threads have not come back yet."""
        self._refused: list[Done] = []
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def submit(self, job: Job) -> None:
        """A job that is under way already is not begun again."""
        if job in self._given_up:
            self._refused.append(Done(job, None, TOO_SLOW))
            os.eventfd_write(self.wake_fd, 1)
        elif job not in self._running and job not in self._waiting:
            self._waiting.append(job)
            self._start()

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more: it is not begun. One that is under way ends as it may."""
        if job in self._waiting:
            self._waiting.remove(job)

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def collect(self) -> list[Done]:
        """Outcomes since the last call. To be called now and then while busy. Raises StuckError."""
        with_wakes = True
        while with_wakes:
            try:
                os.eventfd_read(self.wake_fd)
            except BlockingIOError:
                with_wakes = False
        outcomes = []
        while not self._done.empty():
            done = self._done.get()
            self._running.pop(done.job, None)
            if done.job in self._given_up:
                self._given_up.remove(done.job)
            else:
                outcomes.append(done)
        outcomes += self._refused
        self._refused.clear()
        now_ns = self._clock_ns()
        for job, begun_ns in list(self._running.items()):
            if now_ns - begun_ns > limits.GRAMMAR_COMPILE_TIMEOUT_S * 1e9:
                del self._running[job]
                self._given_up.add(job)
                outcomes.append(Done(job, None, TOO_SLOW))
        if len(self._given_up) > limits.MAX_STUCK_COMPILES:
            raise StuckError(f"{len(self._given_up)} grammars are still being compiled after their deadline")
        self._start()
        return outcomes

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._num_threads:
            job = self._waiting.popleft()
            self._running[job] = self._clock_ns()
            usual_bytes = threading.stack_size(STACK_BYTES)
            threading.Thread(target=self._compile, args=(job,), name="compile", daemon=True).start()
            threading.stack_size(usual_bytes)

    def _compile(self, job: Job) -> None:
        """On a thread of its own: they are few, and one that is stuck blocks no other."""
        try:
            done = Done(job, self._compiler.compile(job.kind, job.source))
        except GrammarError as error:
            done = Done(job, None, str(error))
        except BaseException as error:  # a panic of the library arrives as an exception that is no Exception
            done = Done(job, None, f"it cannot be compiled ({type(error).__name__})")
        self._done.put(done)
        os.eventfd_write(self.wake_fd, 1)
