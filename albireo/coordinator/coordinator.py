"""The coordinator actor: one `step` is receive, confirm, plan, answer.

It hears of requests over ZeroMQ and of tokens through the token rings; what it decides goes into the plan ring.
Planning comes before answering: the workers are never kept waiting for the frontends.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

from albireo import sockets
from albireo.config import CoordinatorConfig, worker_name
from albireo.coordinator.deadlines import QueueDeadlines
from albireo.coordinator.grammars import DOWN, Compilation, Grammars
from albireo.coordinator.outputs import token_messages
from albireo.coordinator.request import Request
from albireo.coordinator.results import ConfirmedRows
from albireo.coordinator.run_ahead import RunAhead
from albireo.coordinator.scheduler import Scheduler
from albireo.coordinator.step_log import StepLog
from albireo.coordinator.submission import make_request, problem_of, submitted_tokens
from albireo.coordinator.telemetry import Telemetry
from albireo.messages import (
    Abort,
    Crashed,
    Expired,
    Failed,
    GrammarDown,
    Rejected,
    Submit,
    ToCoordinator,
    ToFrontend,
    coordinator_decoder,
    encode,
)
from albireo.shm.flight import Part, Recorder
from albireo.shm.plan_ring import PlanWriter
from albireo.shm.token_ring import TokenReader, TokenSlot

log = logging.getLogger(__name__)

MAX_MESSAGES_PER_STEP = 256
"""Messages taken between two plans: a flood of requests delays planning by a bounded time."""


MAX_CRASHES = 2
"""Deaths of workers with a request in flight, at the same place of it, that end it: it may be what kills them."""


class RanksDifferError(Exception):
    """Two ranks computed different tokens from the same plan: nothing that they say from now on can be trusted."""


class Coordinator:
    """State and step of the process. Sockets, rings, clock and telemetry are handed in."""

    def __init__(
        self,
        config: CoordinatorConfig,
        scheduler: Scheduler,
        plans: PlanWriter,
        tokens: list[TokenReader],
        frontends: "zmq.Socket[bytes]",
        bell: sockets.Bell,
        telemetry: Telemetry,
        recorder: Recorder,
        clock_ns: Callable[[], int],
        grammars: Grammars,
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._plans = plans
        self._tokens = tokens
        self._frontends = frontends
        self._bell = bell
        self._telemetry = telemetry
        self._recorder = recorder
        self._grammars = grammars
        self._idle_since_ns = clock_ns()
        self._clock_ns = clock_ns
        self._step_log = StepLog()
        self._run_ahead = RunAhead(config.scheduler.run_ahead)
        self._decoder = coordinator_decoder()
        self._identities: list[bytes] = []
        """ZeroMQ identities of the frontends heard from; a frontend's index is its place here."""
        self._gone: set[bytes] = set()
        """Identities of those that have died."""
        self._requests: dict[tuple[int, int], Request] = {}
        """By (frontend, request id): everything that has not had its terminal event."""
        self._deadlines = QueueDeadlines(config.queue_timeout_s)
        self._num_arrived = 0
        self._num_confirmed = plans.next_step - 1
        grammars.confirmed(self._num_confirmed, ())
        self._is_halted = False
        """There are no workers."""
        self._arrived: list[TokenSlot | None] = [None] * len(tokens)
        """By rank: results of the next step that are here already."""
        self._outbox: list[tuple[int, ToFrontend]] = []

    @property
    def is_busy(self) -> bool:
        """True while steps are in flight: the next wake-up is due soon."""
        return self._scheduler.num_in_flight > 0

    @property
    def is_watching(self) -> bool:
        """True while a request's wait may come to its end, of which no message tells."""
        return len(self._deadlines) > 0

    def step(self) -> None:
        """Takes what has arrived, plans as far as it may, answers. Never blocks."""
        self._receive()
        if not self._is_halted:
            self._confirm()
            self._plan()
        self._expire()  # of those that could not start even now
        self._answer()
        num_planned = self._plans.next_step - 1
        depth = self._run_ahead.depth
        down = self._grammars.refusal == DOWN
        self._telemetry.publish(self._clock_ns(), self._scheduler, num_planned, self._num_confirmed, depth, down)

    # -- receive ------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        begin_ns = self._clock_ns()
        self._take_compilations(self._grammars.receive())
        count = 0
        while count < MAX_MESSAGES_PER_STEP and self._receive_one():
            count += 1
        if count:
            self._recorder.record(Part.RECEIVE, self._plans.next_step, begin_ns, self._clock_ns(), count)

    def _receive_one(self) -> bool:
        """False when there is no message."""
        try:
            identity, *frames = self._frontends.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        if identity in self._gone:  # what it said in its last moments
            return True
        try:
            self._handle(self._frontend_index(identity), self._decoder.decode(b"".join(frames)))
        except msgspec.MsgspecError as error:
            log.error("dropped a message of %r that is none of ours: %s", identity, error)
        return True

    def _frontend_index(self, identity: bytes) -> int:
        if identity not in self._identities:
            self._identities.append(identity)
        return self._identities.index(identity)

    def _handle(self, frontend: int, message: ToCoordinator) -> None:
        match message:
            case Submit():
                self._submit(frontend, message)
            case Abort():
                for request_id in message.request_ids:
                    request = self._requests.pop((frontend, request_id), None)
                    if request is not None:
                        self._abort(request)

    def _abort(self, request: Request) -> None:
        self._scheduler.abort(request)
        if request.has_grammar:
            self._grammars.forget([request])

    def frontend_down(self, identity: str) -> None:
        """From the supervisor: nobody waits for this frontend's requests."""
        self._gone.add(identity.encode())
        if identity.encode() not in self._identities:
            return
        index = self._frontend_index(identity.encode())
        keys = [key for key in self._requests if key[0] == index]
        for key in keys:
            self._abort(self._requests.pop(key))
        if keys:
            log.warning("%s has died; its %d requests are aborted", identity, len(keys))

    def halt(self) -> None:
        """The workers are gone. Takes what they have said, and plans nothing until `resume`."""
        self._confirm()
        self._is_halted = True
        self._telemetry.halt()
        self._step_log.forget()
        crashes: defaultdict[int, dict[int, int]] = defaultdict(dict)
        for request in self._scheduler.lose_devices():
            request.note_crash()
            if request.num_crashes >= MAX_CRASHES:
                self._fail(request, "the engine has died each time that it tried to go on with this request")
            else:
                crashes[request.frontend][request.request_id] = request.num_crashes
        self._outbox += [(frontend, Crashed(own)) for frontend, own in crashes.items()]
        for request in self._requests.values():
            if request.num_admissions and not request.has_output and not request.deadline_ns:
                self._deadlines.watch(request, self._clock_ns())  # its first step is yet to come, again
        self._tell_grammars()
        self._answer()
        log.warning("the workers are gone; %d requests wait for others", len(self._scheduler.waiting))

    def resume(self, num_blocks: int, plans: PlanWriter, tokens: list[TokenReader]) -> None:
        """Workers are there, with so many empty KV blocks, at rings that begin anew."""
        self._plans, self._tokens = plans, tokens
        self._arrived = [None] * len(tokens)
        self._num_confirmed = plans.next_step - 1
        self._grammars.confirmed(self._num_confirmed, ())
        self._scheduler.gain_devices(num_blocks)
        for request in list(self._requests.values()):
            if (problem := self._scheduler.capacity_error(request)) is not None:
                self._fail(request, problem)
        self._is_halted = False

    def _fail(self, request: Request, why: str) -> None:
        """Ends a request through no fault of its client."""
        log.error("request %d of frontend %d: %s", request.request_id, request.frontend, why)
        del self._requests[request.frontend, request.request_id]
        self._abort(request)
        self._outbox.append((request.frontend, Failed(request.request_id, why)))

    def _expire(self) -> None:
        """Ends requests that have waited too long for their first step."""
        if not self.is_watching:
            return
        now_ns, timeout_s = self._clock_ns(), self._deadlines.timeout_s
        expired = self._deadlines.take_expired(now_ns)
        for request in expired:
            del self._requests[request.frontend, request.request_id]
            self._abort(request)
            why = f"the request has waited {timeout_s:g} seconds for its first step; send it again in a moment"
            self._outbox.append((request.frontend, Expired(request.request_id, why)))
        num_waiting, num_running = len(self._scheduler.waiting), self._scheduler.slots.num_running
        self._step_log.expired(expired, timeout_s, num_waiting, num_running, now_ns)

    def grammar_down(self, message: GrammarDown) -> None:
        """From the supervisor."""
        self._take_compilations(self._grammars.lost(message.pid, message.restarts))

    def _take_compilations(self, news: Iterable[Compilation]) -> None:
        for each in news:
            request = each.request
            if each.problem is None:
                self._scheduler.submit(request)
                continue
            del self._requests[request.frontend, request.request_id]
            self._abort(request)
            answer: ToFrontend = Failed(request.request_id, each.problem, is_transient=True)
            if each.is_clients:
                answer = Rejected(request.request_id, each.field, f"{each.field}: {each.problem}")
            self._outbox.append((request.frontend, answer))

    def _submit(self, frontend: int, message: Submit) -> None:
        tokens = submitted_tokens(message)
        problem = problem_of(message, tokens, self._config)
        if (frontend, message.request_id) in self._requests:
            problem = "request_id", "this request id is in use"
        if message.grammar is not None and self._grammars.refusal is not None:
            if self._grammars.refusal == DOWN:
                self._outbox.append((frontend, Failed(message.request_id, self._grammars.refusal, is_transient=True)))
                return
            problem = message.grammar.field, f"{message.grammar.field}: {self._grammars.refusal}"
        if problem is None:
            self._num_arrived += 1
            now_ns, max_model_len = self._clock_ns(), self._config.scheduler.max_model_len
            request = make_request(message, tokens, frontend, self._num_arrived, now_ns, max_model_len)
            capacity = self._scheduler.capacity_error(request)
            if capacity is None:
                self._requests[frontend, message.request_id] = request
                if not request.has_output:
                    self._deadlines.watch(request, now_ns if request.num_admissions else request.arrival_ns)
                if message.grammar is None:
                    self._scheduler.submit(request)
                else:
                    self._grammars.submit(request, message.grammar)
                return
            problem = ("max_tokens", capacity)
        self._outbox.append((frontend, Rejected(message.request_id, *problem)))

    # -- confirm, plan, answer ----------------------------------------------------------------------------------

    def _confirm(self) -> None:
        while self._step_has_arrived():
            self._recorder.start(self._num_confirmed + 1)
            slot = self._merge_ranks()
            header = slot.header[0]
            rows: npt.NDArray[Any] = slot.rows[: int(header["num_rows"])].copy()
            logprobs: npt.NDArray[Any] = slot.logprobs[: int(header["num_logprobs"])].copy()
            begin_ns, end_ns = int(header["begin_ns"]), int(header["end_ns"])
            if self._scheduler.swap.is_on:
                self._scheduler.swap.costs.observe(begin_ns, end_ns, int(header["swap_ns"]))
            for ring in self._tokens:
                ring.consume()
            self._arrived = [None] * len(self._tokens)
            self._num_confirmed += 1
            self._recorder.num_rows = rows.size
            self._deliver(self._scheduler.confirm(rows, logprobs))
            self._grammars.confirmed(self._num_confirmed, self._scheduler.take_constrained())
            self._recorder.mark(Part.CONFIRM)
            self._run_ahead.observe(begin_ns, end_ns)
            exposed_ns = self._telemetry.observe_step(self._num_confirmed, begin_ns, end_ns, self._scheduler.has_work)
            self._step_log.confirmed(self._num_confirmed, end_ns - begin_ns, exposed_ns, end_ns)

    def _step_has_arrived(self) -> bool:
        """Whether every rank has published the next step's results."""
        for rank, ring in enumerate(self._tokens):
            if self._arrived[rank] is None:
                self._arrived[rank] = ring.poll()
        return None not in self._arrived

    def _merge_ranks(self) -> TokenSlot:
        """The step's results, which every rank has in full. Raises RanksDifferError where their tokens, or how many
        logprobs they have, are not the same."""
        first, *others = [slot for slot in self._arrived if slot is not None]
        num_rows, num_logprobs = int(first.header["num_rows"][0]), int(first.header["num_logprobs"][0])
        for rank, other in enumerate(others, 1):
            rows = other.rows[: int(other.header["num_rows"][0])]
            if not np.array_equal(first.rows[:num_rows], rows) or other.header["num_logprobs"][0] != num_logprobs:
                names = " and ".join(worker_name(self._config.replica, each, len(self._tokens)) for each in (0, rank))
                raise RanksDifferError(f"{names} sampled different tokens in step {self._num_confirmed + 1}")
        return first

    def _deliver(self, rows: ConfirmedRows) -> None:
        admitted, self._scheduler.admitted = self._scheduler.admitted, {}
        self._outbox.extend(token_messages(self._num_confirmed, rows, admitted).items())
        for index in np.flatnonzero(rows.finish).tolist():
            request = self._requests.pop((int(rows.frontends[index]), int(rows.request_ids[index])))
            if request.has_grammar:
                self._grammars.forget([request])

    def _plan(self) -> None:
        planned = False
        while (
            self._scheduler.num_in_flight <= self._run_ahead.depth
            and self._plans.has_room()
            and self._scheduler.has_work
        ):
            self._recorder.start(self._plans.next_step)
            plan = self._plans.next_slot()
            if not self._scheduler.plan(plan):
                break
            self._recorder.num_rows = num_rows = int(plan.header["num_rows"][0])
            num_chunk_tokens = int(plan.header["num_chunk_tokens"][0])
            self._recorder.mark(Part.SCHEDULE)
            if self._scheduler.swap.is_on:
                self._scheduler.swap.costs.expect(plan.counts())
            self._plans.publish()
            self._recorder.mark(Part.WRITE_PLAN)
            self._telemetry.observe_plan(num_rows + num_chunk_tokens)
            self._step_log.planned(num_rows, num_chunk_tokens)
            self._tell_grammars()
            planned = True
        if planned:
            self._recorder.start(self._plans.next_step - 1)
            self._bell.ring()
            self._recorder.mark(Part.DOORBELL)
        self._step_log.preempted(self._scheduler.take_preemptions(), self._clock_ns())
        self._note_idleness()

    def _tell_grammars(self) -> None:
        """Which constrained requests entered a slot, or left one, with the newest step."""
        if changes := self._scheduler.grammar_changes:
            self._grammars.planned(self._plans.next_step - 1, changes)
            changes.clear()

    def _note_idleness(self) -> None:
        """Notes a stretch without any request once it is over."""
        if not self._scheduler.has_work:
            self._idle_since_ns = self._idle_since_ns or self._clock_ns()
        elif self._idle_since_ns:
            self._recorder.record(Part.IDLE, self._plans.next_step - 1, self._idle_since_ns, self._clock_ns())
            self._idle_since_ns = 0

    def _answer(self) -> None:
        if not self._outbox:
            return
        self._recorder.start(self._num_confirmed, len(self._outbox))
        for frontend, message in self._outbox:
            self._frontends.send_multipart([self._identities[frontend], encode(message)])
        self._outbox.clear()
        self._recorder.mark(Part.SEND)
