"""Routing policies in virtual time: the real router, the real scheduler, and a simulated GPU's step times, driven by
one clock. No process, no socket and no host's noise: the same figures on every machine.

    python tools/routing_model.py --load chat documents --frontends 1 2 4
    python tools/routing_model.py --load chat --replicas 2 --kv-gib 20 --rate 3

Loads are those of tools/bench_routing.py, conversations of several turns, each turn at a frontend by chance. Means of
`--seeds` runs; of the 99th percentile the range, too. What frontends and coordinators would take is left out, but for
half a millisecond behind each step.
"""

import argparse
import heapq
import itertools
import os
import random
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from bench_routing import POLICIES
from conversations import Conversation, ConversationSettings, answer_tokens, plan_conversations
from shared_routes import new_routes
from sim_models import SHAPES, write_model

from albireo.checkpoint import ModelConfig, kv_bytes_per_block, read_checkpoint
from albireo.config import RoutingPolicy, SchedulerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.run_ahead import RunAhead
from albireo.coordinator.scheduler import Scheduler
from albireo.frontend.routing import Router
from albireo.gpu_worker.sim_device import step_work
from albireo.gpu_worker.token_rule import RuleState
from albireo.messages import SamplingParams
from albireo.shm import layout, segment
from albireo.shm.plan_ring import PlanRing, PlanSlot
from albireo.shm.routes import SharedLoad
from albireo.shm.segment import Segment
from albireo.sim.roofline import Roofline
from albireo.sim.spec import read_spec

BLOCK_SIZE: Final = 16
MAX_MODEL_LEN: Final = 40960
BEHIND_STEP_S: Final = 0.0005
"""From a step's end on the device until its tokens are known and the next is planned."""

_CHAT: Final = ConversationSettings(
    rate=2.5, seconds=30.0, warmup_s=10.0, groups=8, system_tokens=1500, turns=5, user_tokens=250, output_tokens=80,
    think_s=1.5,
)  # fmt: skip
LOADS: Final = {
    "chat": _CHAT,
    "documents": msgspec.structs.replace(
        _CHAT, rate=1.5, groups=16, system_tokens=4000, turns=3, user_tokens=400, output_tokens=150, think_s=3.0
    ),
    "one-prompt": msgspec.structs.replace(_CHAT, rate=14.0, groups=1, system_tokens=6000, turns=1, user_tokens=100),
    "many-prompts": msgspec.structs.replace(_CHAT, rate=4.5, groups=150, system_tokens=2000, turns=2, user_tokens=200),
    "unrelated": msgspec.structs.replace(
        _CHAT, rate=7.0, groups=1, system_tokens=1, turns=1, user_tokens=1500, output_tokens=150
    ),
}
"""With their rates for a replica."""


class Clock:
    """Virtual time, and what is to happen in it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), act))

    def run(self) -> None:
        while self._events:
            self.now_s, _, act = heapq.heappop(self._events)
            act()


class Told(NamedTuple):
    """Who is told what becomes of a request."""

    on_admitted: Callable[[int], None]
    on_token: Callable[[bool], None]


class Replica:
    """A scheduler and its device."""

    def __init__(self, clock: Clock, num_blocks: int, roofline: Roofline, vocab_size: int) -> None:
        config = SchedulerConfig(max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
        self.scheduler = Scheduler(config, num_blocks, (), b"key")
        self.num_sequences = 0
        """As the coordinator would say: at the last step."""
        self._clock = clock
        self._plan = _plan_slot(config)
        self._state = RuleState(config)
        self._roofline = roofline
        self._vocab_size = vocab_size
        self._run_ahead = RunAhead(config.run_ahead)
        self._in_flight: deque[tuple[float, float, npt.NDArray[Any]]] = deque()
        """Begin, end and results of steps."""
        self._free_s = 0.0
        self._live: dict[int, Told] = {}

    def submit(self, request: Request, sequence: Told) -> None:
        self._live[request.request_id] = sequence
        self.scheduler.submit(request)
        self._launch()

    def _launch(self) -> None:
        """As many steps as may be in flight."""
        scheduler, plan, state = self.scheduler, self._plan, self._state
        while scheduler.has_work and scheduler.num_in_flight <= self._run_ahead.depth and scheduler.plan(plan):
            state.apply(plan)
            work = step_work(plan, plan.counts(), state.num_tokens[state.rows])
            begin_s = max(self._clock.now_s, self._free_s)
            self._free_s = begin_s + self._roofline.step(work).total
            sampled = state.sample(plan, self._vocab_size)
            rows = np.zeros(sampled.slots.size, layout.TOKEN_ROW)
            rows["slot"], rows["generation"] = sampled.slots, state.generation[sampled.slots]
            rows["token"], rows["finish"] = sampled.tokens, sampled.finish
            self._in_flight.append((begin_s, self._free_s, rows))
            self._clock.at(self._free_s + BEHIND_STEP_S, self._finish)

    def _finish(self) -> None:
        begin_s, end_s, rows = self._in_flight.popleft()
        self._run_ahead.observe(round(1e9 * begin_s), round(1e9 * end_s))
        confirmed = self.scheduler.confirm(rows)
        for admitted in itertools.chain.from_iterable(self.scheduler.admitted.values()):
            self._live[admitted.request_id].on_admitted(admitted.num_cached_tokens)
        self.scheduler.admitted.clear()
        for request_id, finish in zip(confirmed.request_ids.tolist(), confirmed.finish.tolist(), strict=True):
            sequence = self._live.pop(request_id) if finish else self._live[request_id]
            sequence.on_token(bool(finish))
        self._launch()
        self.num_sequences = self.scheduler.slots.num_running + len(self.scheduler.waiting)


def _plan_slot(config: SchedulerConfig) -> PlanSlot:
    ring = PlanRing(config, 1)
    fd = segment.create("plan", ring.geometry.size)
    slot = PlanSlot(Segment(fd), ring.geometry.slot_offset(0), config)
    os.close(fd)
    return slot


class View:
    """What a frontend knows of a replica, and says of its own requests there: as `frontend.engine_client` does."""

    is_up = True

    def __init__(self, replica: Replica, load: SharedLoad) -> None:
        self.replica = replica
        self._load = load
        self._num_own = self._num_prompt_tokens = 0

    @property
    def num_sequences(self) -> int:
        return max(self._load.num_sequences, self.replica.num_sequences)

    @property
    def num_prompt_tokens(self) -> int:
        return self._load.num_prompt_tokens

    def add(self, num_sequences: int, num_prompt_tokens: int) -> None:
        self._num_own += num_sequences
        self._num_prompt_tokens += num_prompt_tokens
        self._load.say(self._num_own, self._num_prompt_tokens)


class Answer(NamedTuple):
    """One turn. Seconds and tokens."""

    replica: int
    ttft_s: float
    tpot_s: float
    num_prompt: int
    num_cached: int


class Run:
    """One load, from its begin to its end."""

    def __init__(
        self, policy: RoutingPolicy, load: ConversationSettings, num_replicas: int, num_frontends: int,
        num_blocks: int, roofline: Roofline, vocab_size: int, seed: int,
    ) -> None:  # fmt: skip
        self._clock = Clock()
        self._load = load
        self._vocab_size = vocab_size
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self.answers: list[Answer] = []
        """Of turns that were sent after the warm-up."""
        replicas = [Replica(self._clock, num_blocks, roofline, vocab_size) for _ in range(num_replicas)]
        self._frontends = [
            (
                Router(policy, own, num_replicas, num_blocks * BLOCK_SIZE),
                [View(replica, shared) for replica, shared in zip(replicas, own.loads, strict=True)],
            )
            for own in new_routes(num_replicas, num_frontends)
        ]
        for conversation in plan_conversations(load, seed):
            self._clock.at(conversation.begin_s, partial(self._send, conversation, 0, conversation.system))
        self._clock.run()

    def _send(self, conversation: Conversation, number: int, said: list[int]) -> None:
        sent_s, turn = self._clock.now_s, conversation.turns[number]
        if sent_s >= self._load.seconds:
            return
        prompt = said + turn.user
        router, views = self._random.choice(self._frontends)
        tokens = np.array(prompt, np.int32)
        route = router.choose(tokens.tobytes(), "", views)
        assert route is not None, "replicas are never down here"
        view = views[route.replica]
        to_compute, num_cached, first_s = len(prompt) - route.num_cached_tokens, 0, 0.0
        view.add(1, to_compute)

        def on_admitted(found: int) -> None:
            nonlocal to_compute, num_cached
            num_cached = found
            view.add(0, len(prompt) - found - to_compute)
            to_compute = len(prompt) - found

        def on_token(is_last: bool) -> None:
            nonlocal first_s, to_compute
            if not first_s:
                first_s = self._clock.now_s
                view.add(0, -to_compute)
                to_compute = 0
            if is_last:
                view.add(-1, 0)
                end()

        def end() -> None:
            if sent_s >= self._load.warmup_s:
                tpot_s = (self._clock.now_s - first_s) / max(1, turn.num_output - 1)
                self.answers.append(Answer(route.replica, first_s - sent_s, tpot_s, len(prompt), num_cached))
            if number + 1 < len(conversation.turns):
                answer = answer_tokens(len(prompt), turn.num_output, conversation.seed, self._vocab_size)
                due_s = self._clock.now_s + conversation.turns[number + 1].think_s
                self._clock.at(due_s, partial(self._send, conversation, number + 1, prompt + answer))

        request = Request(
            frontend=0, request_id=next(self._numbers), tokens=tokens, max_total_tokens=len(prompt) + turn.num_output,
            sampling=SamplingParams(max_tokens=turn.num_output, seed=conversation.seed, ignore_eos=True),
            priority=0, cache_salt="", arrival=next(self._numbers),
        )  # fmt: skip
        view.replica.submit(request, Told(on_admitted, on_token))


def row(runs: Sequence[Run], num_replicas: int) -> str:
    """Cells of a table: means of the runs."""

    def mean(of: Callable[[list[Answer]], float]) -> float:
        return float(np.mean([of(run.answers) for run in runs]))

    p99 = [1e3 * float(np.percentile([each.ttft_s for each in run.answers], 99)) for run in runs]
    cached = mean(lambda answers: sum(a.num_cached for a in answers) / sum(a.num_prompt for a in answers))
    p50 = 1e3 * mean(lambda answers: float(np.percentile([each.ttft_s for each in answers], 50)))
    tpot = 1e3 * mean(lambda answers: float(np.percentile([each.tpot_s for each in answers], 99)))
    counts = [np.bincount([each.replica for each in run.answers], minlength=num_replicas) for run in runs]
    shares = np.concatenate([count / count.mean() for count in counts])
    return (
        f"{mean(len):.0f} | {100 * cached:.0f} | {p50:.0f} | {np.mean(p99):.0f} ({min(p99):.0f}-{max(p99):.0f}) "
        f"| {tpot:.0f} | {shares.min():.2f}-{shares.max():.2f}"
    )


def kv_blocks(model: ModelConfig, kv_gib: float) -> int:
    return int(kv_gib * 2**30) // kv_bytes_per_block(model, BLOCK_SIZE, "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", nargs="+", choices=sorted(LOADS), default=["chat"])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--frontends", type=int, nargs="+", default=[1])
    parser.add_argument("--kv-gib", type=float, default=6.0, help="KV cache of a replica")
    parser.add_argument("--rate", type=float, help="conversations per second and replica")
    parser.add_argument("--model", choices=sorted(SHAPES), default="qwen3-14b")
    parser.add_argument("--spec", default="h100", help="preset or spec file of the simulated GPU")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = read_checkpoint(write_model(Path(folder), args.model), check_weights=False).model
    roofline = Roofline(model, 1, "bfloat16", read_spec(args.spec), "sequence-parallel", is_eager=False)
    num_blocks = kv_blocks(model, args.kv_gib)
    print(f"{args.replicas} replicas of {num_blocks * BLOCK_SIZE:,} tokens of KV, {args.model} on {args.spec}\n")
    print("| load | policy | frontends | turns | cached, % of prompts | TTFT p50, ms | TTFT p99, ms | TPOT p99, ms "
          "| requests of a replica, beside their mean |")  # fmt: skip
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in args.load:
        rate = args.replicas * (args.rate or LOADS[name].rate)
        load = msgspec.structs.replace(LOADS[name], rate=rate)
        for policy in args.policies:
            for num_frontends in args.frontends:
                runs = [
                    Run(policy, load, args.replicas, num_frontends, num_blocks, roofline, model.vocab_size, seed)
                    for seed in range(1, args.seeds + 1)
                ]
                print(f"| {name} | {policy} | {num_frontends} | {row(runs, args.replicas)} |", flush=True)


if __name__ == "__main__":
    main()
