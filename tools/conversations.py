"""Conversations as a load: each turn sends all that was said before and something new, and comes some time after the
last answer. Many begin with the same system prompt. Open: conversations begin when they are due, whatever becomes of
the others.

A simulated device says tokens that depend on the seed and the position alone (`token_rule`), so the client knows an
answer's ids without reading them.
"""

import asyncio
import random
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct

from albireo.bench.connection import ConnectionPool
from albireo.bench.event_stream import EventStream
from albireo.bench.http_requests import http_request
from albireo.bench.outcome import RequestOutcome, judge
from albireo.gpu_worker.token_rule import next_tokens

TOKEN_IDS = range(300, 100_000)
"""What prompts are made of; answers have none of these."""
BLOCK_TOKENS = 16
"""Only whole blocks are found in a prefix cache."""


class ConversationSettings(Struct, frozen=True, kw_only=True):
    """All lengths in tokens. What varies is drawn evenly from half of its mean to one and a half; think times and the
    gaps between conversations are exponential."""

    rate: float
    """Conversations that begin per second."""
    seconds: float
    """In which turns are sent; what was sent is answered to the end."""
    warmup_s: float
    """Turns sent before are not counted."""
    groups: int
    """System prompts; the conversations of a group share one."""
    system_tokens: int
    turns: int
    user_tokens: int
    output_tokens: int
    think_s: float
    """Mean time from an answer's end to the next turn."""


class Turn(Struct, frozen=True):
    user: list[int]
    num_output: int
    think_s: float
    """Before it; 0 for the first."""


class Conversation(Struct, frozen=True):
    begin_s: float
    group: int
    seed: int
    system: list[int]
    turns: list[Turn]


class TurnResult(Struct, frozen=True):
    """One turn and its answer."""

    sent_s: float
    """Since the load began."""
    late_s: float
    """How long after it was due: the client's own delay."""
    outcome: RequestOutcome
    num_known: int
    """Tokens of its prompt, in whole blocks, that were sent or said before: most that one cache for all could have."""


def plan_conversations(settings: ConversationSettings, seed: int) -> list[Conversation]:
    """All that begin in `seconds`, by their begin. Another seed shares no prompt with this one."""
    rng = random.Random(seed)
    systems = [rng.choices(TOKEN_IDS, k=_around(rng, settings.system_tokens)) for _ in range(settings.groups)]
    planned = []
    begin_s = rng.expovariate(settings.rate)
    while begin_s < settings.seconds:
        group = rng.randrange(settings.groups)
        turns = [
            Turn(
                rng.choices(TOKEN_IDS, k=_around(rng, settings.user_tokens)),
                _around(rng, settings.output_tokens),
                rng.expovariate(1 / settings.think_s) if number else 0.0,
            )
            for number in range(_around(rng, settings.turns))
        ]
        planned.append(Conversation(begin_s, group, rng.getrandbits(63), systems[group], turns))
        begin_s += rng.expovariate(settings.rate)
    return planned


def _around(rng: random.Random, mean: int) -> int:
    return rng.randint(max(1, mean - mean // 2), mean + mean // 2)


def answer_tokens(position: int, num_tokens: int, seed: int, vocab_size: int) -> list[int]:
    """What a simulated device says from this position on."""
    positions = np.arange(position, position + num_tokens, dtype=np.int32)
    tokens: list[int] = next_tokens(np.full(num_tokens, seed, np.uint64), positions, vocab_size).tolist()
    return tokens


class ConversationClients:
    """Holds all conversations of one load with one server, on one event loop."""

    def __init__(self, url: str, settings: ConversationSettings, vocab_size: int) -> None:
        self._pool = ConnectionPool(url)
        self._settings = settings
        self._vocab_size = vocab_size
        self._results: list[TurnResult] = []
        self._began_s = 0.0
        self._groups_seen: set[int] = set()

    async def run(self, conversations: Sequence[Conversation], most_s: float) -> list[TurnResult]:
        """All turns, in the order of their ends. Raises RuntimeError when one fails, TimeoutError when the last is not
        answered `most_s` after the time of sending."""
        self._began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._settings.seconds + most_s), asyncio.TaskGroup() as group:
                for conversation in conversations:
                    group.create_task(self._hold(conversation))
        finally:
            self._pool.close()
        return self._results

    async def _hold(self, conversation: Conversation) -> None:
        said = list(conversation.system)
        num_known, due_s = 0, conversation.begin_s
        for turn in conversation.turns:
            if (due_s := due_s + turn.think_s) >= self._settings.seconds:
                return
            await asyncio.sleep(self._began_s + due_s - time.perf_counter())
            if not num_known and conversation.group in self._groups_seen:
                num_known = len(conversation.system)
            self._groups_seen.add(conversation.group)
            said += turn.user
            sent_s = time.perf_counter() - self._began_s
            outcome = await self._ask(said, turn.num_output, conversation.seed)
            known = num_known // BLOCK_TOKENS * BLOCK_TOKENS
            self._results.append(TurnResult(sent_s, sent_s - due_s, outcome, known))
            said += answer_tokens(len(said), turn.num_output, conversation.seed, self._vocab_size)
            num_known = len(said) - 1  # the last token was sampled and never computed
            due_s = time.perf_counter() - self._began_s

    async def _ask(self, prompt: list[int], num_output: int, seed: int) -> RequestOutcome:
        body = {
            "prompt": prompt, "max_tokens": num_output, "seed": seed, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        request = http_request("POST", "/v1/completions", self._pool.url.netloc, {}, msgspec.json.encode(body))
        stream = EventStream()
        stream.start_ns = time.perf_counter_ns()
        await self._pool.request(request, stream)
        stream.end_ns = time.perf_counter_ns()
        outcome = judge(stream, len(prompt))
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
        return outcome
