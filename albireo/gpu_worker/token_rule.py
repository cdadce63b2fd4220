"""Tokens without a model: what the devices that compute nothing say, and the request state that they keep for it.

The next token depends on the request's seed and on its position alone (`next_tokens`), so run-ahead, preemption and the
number of ranks cannot change a text. numpy on arrays: no loop over rows.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from albireo.config import SchedulerConfig
from albireo.gpu_worker.prompt_scores import find_prompt_scores
from albireo.gpu_worker.sampling.stop import check_stop
from albireo.limits import MAX_STOP_TOKEN_IDS
from albireo.messages import Finish
from albireo.shm.plan_ring import PlanSlot
from albireo.shm.token_ring import TokenSlot

Int32s = npt.NDArray[np.int32]

FIRST_TOKEN: Final = 36
NUM_TOKENS: Final = 58
"""The ids that it says, [36, 94): in byte-level vocabularies these are ASCII letters and a few signs, one each."""


def next_tokens(seeds: npt.NDArray[np.uint64], positions: Int32s, vocab_size: int) -> Int32s:
    """The token at `positions` of the sequences with `seeds`, int32 [n].

    FIRST_TOKEN plus a hash of (seed, position) modulo NUM_TOKENS; in a vocabulary without those ids the hash modulo
    `vocab_size`. EOS and stop ids come up only where they are among these.
    """
    first, count = (FIRST_TOKEN, NUM_TOKENS) if vocab_size >= FIRST_TOKEN + NUM_TOKENS else (0, vocab_size)
    # odd multipliers of 64 bits spread neighbouring seeds and positions; uint64 arrays wrap around
    mixed = seeds * np.uint64(0x9E3779B97F4A7C15) + positions.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    tokens: Int32s = ((mixed >> np.uint64(33)) % np.uint64(count)).astype(np.int32)
    return tokens + np.int32(first)


class RuleState:
    """Per request slot what the rule, the stop check and the results need; a plan only changes it."""

    def __init__(self, config: SchedulerConfig) -> None:
        n = config.num_slots
        self.generation = np.zeros(n, np.uint32)
        self.alive = np.zeros(n, np.bool_)
        """False once the slot's request said EOS or a stop id: its planned rows do nothing visible."""
        self.num_tokens = np.zeros(n, np.int32)
        """Tokens of the sequence, the last sampled one included."""
        self.block_table = np.zeros((n, config.max_blocks_per_seq), np.int32)
        """Kept as a real device keeps it, since that is work of the control plane's; nothing lies in the blocks."""
        self.seed = np.zeros(n, np.uint64)
        self.min_position = np.zeros(n, np.int32)
        self.stop_ids = np.zeros((n, MAX_STOP_TOKEN_IDS), np.int32)
        self.num_eos_ids = np.zeros(n, np.int32)
        self.num_stop_ids = np.zeros(n, np.int32)
        self.num_logprobs = np.full(n, -1, np.int32)
        self.num_prompt_logprobs = np.full(n, -1, np.int32)
        self.rows: Int32s = np.empty(0, np.int32)
        """Slots of the decode rows, in batch order."""

    def apply(self, plan: PlanSlot) -> None:
        """Admissions, appended blocks and, where the batch changed, its rows."""
        header = plan.header[0]
        if header["rows_changed"]:
            self.rows = plan.rows[: header["num_rows"]].copy()
        if header["num_admissions"]:
            self._admit(plan.admissions[: header["num_admissions"]])
        if header["num_appends"]:
            appends = plan.appends[: header["num_appends"]]
            self.block_table[appends["slot"], appends["index"]] = appends["block"]

    def _admit(self, entries: npt.NDArray[Any]) -> None:
        slots = entries["slot"]
        for name in (
            "generation", "seed", "min_position", "stop_ids", "num_eos_ids", "num_stop_ids", "num_logprobs",
            "num_prompt_logprobs",
        ):  # fmt: skip
            getattr(self, name)[slots] = entries[name]
        self.alive[slots] = True

    def sample(self, plan: PlanSlot, vocab_size: int) -> "SampledRows":
        """The tokens of the plan's result rows by the rule; the state is then that after the step."""
        slots, positions = self._sampled(plan)
        live = self.alive[slots]
        tokens = next_tokens(self.seed[slots], positions, vocab_size)
        finish = check_stop(tokens, slots, self.stop_ids, self.num_eos_ids, self.num_stop_ids)
        # a rule cannot avoid an id as a sampler does: below min_position a stop id does not end the request
        finish[~live | (positions < self.min_position[slots])] = Finish.NONE
        tokens[~live] = -1
        self.num_tokens[slots] = positions + 1
        self.alive[slots] = live & (finish == Finish.NONE)
        return SampledRows(slots, positions, tokens, finish, live)

    def write(self, sampled: "SampledRows", plan: PlanSlot, result: TokenSlot) -> None:
        """Fills `result` but for its times and its sequence."""
        slots, positions, tokens, finish, live = sampled
        rows = result.rows[: slots.size]
        rows["slot"], rows["generation"] = slots, self.generation[slots]
        rows["token"], rows["finish"] = tokens, finish
        result.header["num_rows"], result.header["num_logprobs"] = slots.size, 0
        scores = find_prompt_scores(plan, self.num_prompt_logprobs, 0)
        if scores is not None:
            self._write_logprobs(result, scores.slots, scores.positions, scores.targets)
        asked = live & (self.num_logprobs[slots] >= 0)
        if asked.any():
            self._write_logprobs(result, slots[asked], positions[asked], tokens[asked])

    def _sampled(self, plan: PlanSlot) -> tuple[Int32s, Int32s]:
        """The plan's result rows, decodes first: their slots and the positions of the tokens that they yield."""
        rows, header = self.rows, plan.header[0]
        if not header["num_chunks"]:
            return rows, self.num_tokens[rows]
        chunks = plan.chunks[: header["num_chunks"]]
        chunks = chunks[chunks["samples"] == 1]
        positions = [self.num_tokens[rows], chunks["start"] + chunks["num_tokens"]]
        return np.concatenate([rows, chunks["slot"]]), np.concatenate(positions)

    def _write_logprobs(self, result: TokenSlot, slots: Int32s, positions: Int32s, tokens: Int32s) -> None:
        """Appends LOGPROB [n]: each token was certain (logprob 0, rank 1), and none stands beside it."""
        start = int(result.header["num_logprobs"][0])
        out = result.logprobs[start : start + slots.size]
        out["slot"], out["generation"], out["position"] = slots, self.generation[slots], positions
        out["token"], out["logprob"], out["rank"], out["num_top"] = tokens, 0.0, 1, 0
        result.header["num_logprobs"] = start + slots.size


class SampledRows(NamedTuple):
    """A step's result rows: each array is [n]."""

    slots: Int32s
    positions: Int32s
    """Of the tokens, in their sequences."""
    tokens: Int32s
    """-1 in rows that are dead."""
    finish: Int32s
    live: npt.NDArray[np.bool_]
