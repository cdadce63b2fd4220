"""Routing policies in virtual time: the real router, the real scheduler, and a simulated GPU's step times, driven by
one clock. No process, no socket and no host's noise: the same figures on every machine.

    python tools/routing_model.py --load chat documents --frontends 1 2 4
    python tools/routing_model.py --load chat --replicas 2 --kv-gib 20 --rate 3

Loads are those of tools/bench_routing.py, conversations of several turns, each turn at a frontend by chance. Means of
`--seeds` runs; of the 99th percentile the range, too. What frontends and coordinators would take is left out, but for
half a millisecond behind each step.
"""

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from bench_routing import POLICIES
from conversations import Conversation, ConversationSettings, answer_tokens, plan_conversations
from shared_routes import new_routes
from sim_models import SHAPES, write_model
from virtual_replica import Clock, VirtualReplica

from albireo.config import RoutingPolicy
from albireo.coordinator.request import Request
from albireo.coordinator.results import ConfirmedRows
from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.errors import StartupError
from albireo.frontend.routing import Router
from albireo.messages import Admitted, SamplingParams
from albireo.shm.routes import SharedLoad

NS: Final = 1_000_000_000
CONFIRM_NS: Final = 500_000
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


class Told(NamedTuple):
    """What is to be done when something becomes of a request."""

    on_admitted: Callable[[int], None]
    on_token: Callable[[bool], None]


class View:
    """What a frontend knows of a replica, and says of its own requests there: as `frontend.engine_client` does."""

    is_up = True

    def __init__(self, replica: VirtualReplica, load: SharedLoad, held_work: float) -> None:
        self.replica = replica
        self._held_work = held_work
        self._load = load
        self._num_own = self._num_prompt_tokens = 0

    @property
    def num_sequences(self) -> int:
        return max(self._load.num_sequences, self.replica.num_sequences)

    @property
    def num_prompt_tokens(self) -> int:
        return self._load.num_prompt_tokens + int(self._held_work * self.replica.num_held_tokens)

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
        plan: EnginePlan, seed: int, held_work: float = 0.0,
    ) -> None:  # fmt: skip
        """`held_work`: what a token of KV that a replica's requests hold is to the router, in prompt tokens."""
        self._clock = Clock()
        self._load = load
        self._vocab_size = plan.checkpoint.model.vocab_size
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self.answers: list[Answer] = []
        """Of turns that were sent after the warm-up."""
        self._live: dict[int, Told] = {}
        replicas = [
            VirtualReplica(plan, self._clock, self._on_step, confirm_ns=CONFIRM_NS) for _ in range(num_replicas)
        ]
        self._frontends = [
            (
                Router(policy, own, num_replicas, replicas[0].kv_tokens),
                [View(replica, shared, held_work) for replica, shared in zip(replicas, own.loads, strict=True)],
            )
            for own in new_routes(num_replicas, num_frontends)
        ]
        for conversation in plan_conversations(load, seed):
            self._clock.at(round(NS * conversation.begin_s), partial(self._send, conversation, 0, conversation.system))
        self._clock.run()

    def _on_step(self, admitted: list[Admitted], rows: ConfirmedRows) -> None:
        for each in admitted:
            self._live[each.request_id].on_admitted(each.num_cached_tokens)
        for request_id, finish in zip(rows.request_ids.tolist(), rows.finish.tolist(), strict=True):
            told = self._live.pop(request_id) if finish else self._live[request_id]
            told.on_token(bool(finish))

    def _send(self, conversation: Conversation, number: int, said: list[int]) -> None:
        sent_ns, turn = self._clock.now_ns, conversation.turns[number]
        if sent_ns >= NS * self._load.seconds:
            return
        prompt = said + turn.user
        router, views = self._random.choice(self._frontends)
        tokens = np.array(prompt, np.int32)
        route = router.choose(tokens.tobytes(), "", views)
        assert route is not None, "replicas are never down here"
        view = views[route.replica]
        to_compute, num_cached, first_ns = len(prompt) - route.num_cached_tokens, 0, 0
        view.add(1, to_compute)

        def on_admitted(found: int) -> None:
            nonlocal to_compute, num_cached
            num_cached = found
            view.add(0, len(prompt) - found - to_compute)
            to_compute = len(prompt) - found

        def on_token(is_last: bool) -> None:
            nonlocal first_ns, to_compute
            if not first_ns:
                first_ns = self._clock.now_ns
                view.add(0, -to_compute)
                to_compute = 0
            if is_last:
                view.add(-1, 0)
                end()

        def end() -> None:
            if sent_ns >= NS * self._load.warmup_s:
                ttft_s = (first_ns - sent_ns) / NS
                tpot_s = (self._clock.now_ns - first_ns) / NS / max(1, turn.num_output - 1)
                self.answers.append(Answer(route.replica, ttft_s, tpot_s, len(prompt), num_cached))
            if number + 1 < len(conversation.turns):
                answer = answer_tokens(len(prompt), turn.num_output, conversation.seed, self._vocab_size)
                due_ns = self._clock.now_ns + round(NS * conversation.turns[number + 1].think_s)
                self._clock.at(due_ns, partial(self._send, conversation, number + 1, prompt + answer))

        request = Request(
            frontend=0, request_id=next(self._numbers), tokens=tokens, max_total_tokens=len(prompt) + turn.num_output,
            sampling=SamplingParams(max_tokens=turn.num_output, seed=conversation.seed, ignore_eos=True),
            priority=0, cache_salt="", arrival=next(self._numbers),
        )  # fmt: skip
        self._live[request.request_id] = Told(on_admitted, on_token)
        view.replica.submit(request)


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


def engine_plan(model: str, spec: str, kv_gib: float) -> EnginePlan:
    """Of one GPU. Raises StartupError."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder), model)
        kv_cache_bytes = int(kv_gib * 2**30)
        return plan_engine(
            EngineArgs(str(path), device=f"sim:{spec}", kv_cache_bytes=kv_cache_bytes),
            num_cpus=1,
        )


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
    parser.add_argument("--held-work", type=float, default=0.0, metavar="W", help="what if the router counted each "
                        "token of KV that requests hold as W prompt tokens of work (it does not)")  # fmt: skip
    args = parser.parse_args()
    try:
        plan = engine_plan(args.model, args.spec, args.kv_gib)
    except StartupError as error:
        parser.error(str(error))
    kv_tokens = VirtualReplica(plan, Clock(), lambda *_: None).kv_tokens
    print(f"{args.replicas} replicas of {kv_tokens:,} tokens of KV, {args.model} on {args.spec}\n")
    print("| load | policy | frontends | turns | cached, % of prompts | TTFT p50, ms | TTFT p99, ms | TPOT p99, ms "
          "| requests of a replica, beside their mean |")  # fmt: skip
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in args.load:
        rate = args.replicas * (args.rate or LOADS[name].rate)
        load = msgspec.structs.replace(LOADS[name], rate=rate)
        for policy in args.policies:
            for num_frontends in args.frontends:
                runs = [
                    Run(policy, load, args.replicas, num_frontends, plan, seed, args.held_work)
                    for seed in range(1, args.seeds + 1)
                ]
                print(f"| {name} | {policy} | {num_frontends} | {row(runs, args.replicas)} |", flush=True)


if __name__ == "__main__":
    main()
