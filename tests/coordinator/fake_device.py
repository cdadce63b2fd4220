"""A device in pure Python that obeys plans to the letter and shows every scheduling mistake in its tokens.

A KV cell holds a hash of all tokens up to its position, computed from the cell before it, which is found through the
block table; the next token is a function of the last cell. A block freed too early, given away twice, shared by
mistake or not recomputed therefore changes the tokens, as it would in a model, but never by a rounding error.
"""

from collections.abc import Sequence

import numpy as np

from albireo.config import SchedulerConfig
from albireo.messages import WAITED, Finish
from albireo.shm import layout
from albireo.shm.plan_ring import PlanSlot

VOCAB_SIZE = 50


def extend(cell: int, token: int) -> int:
    return hash((cell, token)) & 0xFFFFFFFF


def next_token(cell: int, seed: int, position: int) -> int:
    return hash((cell, seed, position)) % VOCAB_SIZE


def reference(
    prompt: Sequence[int], seed: int, max_total: int, eos: Sequence[int], stop: Sequence[int]
) -> tuple[list[int], Finish]:
    """What a request must produce, whatever else the engine does."""
    cell = 0
    output: list[int] = []
    for token in prompt:
        cell = extend(cell, token)
    while True:
        token = next_token(cell, seed, len(prompt) + len(output))
        output.append(token)
        cell = extend(cell, token)
        if token in eos:
            return output, Finish.EOS
        if token in stop:
            return output, Finish.STOP_TOKEN
        if len(prompt) + len(output) == max_total:
            return output, Finish.LENGTH


class FakeDevice:
    """Executes plans one by one, in order, as a worker does."""

    def __init__(self, config: SchedulerConfig, num_blocks: int) -> None:
        self._block_size = config.block_size
        self._cells = np.zeros((num_blocks, config.block_size), np.int64)
        self._swapped = np.zeros((config.num_swap_blocks, config.block_size), np.int64)
        self._block_table = np.full((config.num_slots, config.max_blocks_per_seq), -1, np.int32)
        self._rows: list[int] = []
        self._admission: dict[int, np.void] = {}
        self._alive = np.zeros(config.num_slots, np.bool_)
        self._last_token = np.zeros(config.num_slots, np.int32)
        self._num_tokens = np.zeros(config.num_slots, np.int32)
        self.lateness = 0
        """Of a constrained row's masks so many in four come too late for the step that wants them first."""
        self.num_waited = 0

    def execute(self, plan: PlanSlot) -> tuple[np.ndarray, np.ndarray]:
        """One step's TOKEN_ROWs and LOGPROBs."""
        self._scores: list[tuple[int, int, int]] = []
        header = plan.header[0]
        if header["rows_changed"]:
            self._rows = plan.rows[: header["num_rows"]].tolist()
        assert len(self._rows) == header["num_rows"], "the plan's rows are not those last shipped"
        self._copy_blocks(plan)
        for entry in plan.admissions[: header["num_admissions"]]:
            self._admission[int(entry["slot"])] = entry.copy()
            self._alive[entry["slot"]] = True
            self._block_table[entry["slot"]] = -1
        for slot, index, block in plan.appends[: header["num_appends"]].tolist():
            self._block_table[slot, index] = block
        results = [self._decode(slot) for slot in self._rows]
        offset = 0
        for chunk in plan.chunks[: header["num_chunks"]]:
            slot, start, num_tokens, samples = (int(chunk[name]) for name in ("slot", "start", "num_tokens", "samples"))
            self._score(plan, chunk, offset)
            cell, last = 0, -1
            for position in range(start, start + num_tokens):
                last = int(plan.chunk_tokens[offset])
                cell = self._write(slot, position, last)
                offset += 1
            if samples:
                self._last_token[slot], self._num_tokens[slot] = last, start + num_tokens
                results.append(self._sample(slot, cell, start + num_tokens))
        rows = np.zeros(len(results), layout.TOKEN_ROW)
        for row, (slot, token, finish) in zip(rows, results, strict=True):
            row["slot"], row["token"], row["finish"] = slot, token, finish
            row["generation"] = self._admission[slot]["generation"]
        return rows, self._records(rows)

    def _copy_blocks(self, plan: PlanSlot) -> None:
        num_outs, num_ins = int(plan.header["num_swap_outs"][0]), int(plan.header["num_swap_ins"][0])
        outs, ins = plan.copies[:num_outs], plan.copies[num_outs : num_outs + num_ins]
        for copies, target in ((outs, "swap_block"), (ins, "kv_block")):
            assert np.unique(copies[target]).size == copies.size, "two copies have the same target"
        self._swapped[outs["swap_block"]] = self._cells[outs["kv_block"]]
        self._cells[ins["kv_block"]] = self._swapped[ins["swap_block"]]

    def _score(self, plan: PlanSlot, chunk: np.void, offset: int) -> None:
        """Which prompt tokens the plan wants scored, by its words in layout.CHUNK."""
        start, end = int(chunk["start"]), int(chunk["start"] + chunk["num_tokens"])
        for position in range(max(int(chunk["score_from"]), start + 1), end + 1):
            token = int(plan.chunk_tokens[offset + position - start]) if position < end else int(chunk["next_token"])
            if token >= 0:
                self._scores.append((int(chunk["slot"]), position, token))

    def _records(self, rows: np.ndarray) -> np.ndarray:
        """Scores first, then a record for each live row whose request asked."""
        asked = [row for row in rows if row["token"] >= 0 and self._admission[int(row["slot"])]["num_logprobs"] >= 0]
        sampled = [(int(row["slot"]), int(self._num_tokens[row["slot"]]) - 1, int(row["token"])) for row in asked]
        records = np.zeros(len(self._scores) + len(sampled), layout.LOGPROB)
        for record, (slot, position, token) in zip(records, self._scores + sampled, strict=True):
            record["slot"], record["position"], record["token"] = slot, position, token
            record["generation"] = self._admission[slot]["generation"]
        return records

    def _cell(self, slot: int, position: int) -> tuple[int, int]:
        block = int(self._block_table[slot, position // self._block_size])
        assert block >= 0, f"slot {slot} has no block for position {position}"
        return block, position % self._block_size

    def _write(self, slot: int, position: int, token: int) -> int:
        before = int(self._cells[self._cell(slot, position - 1)]) if position else 0
        cell = extend(before, token)
        self._cells[self._cell(slot, position)] = cell
        return cell

    def _decode(self, slot: int) -> tuple[int, int, int]:
        if not self._alive[slot]:
            return slot, -1, Finish.NONE
        position = int(self._num_tokens[slot]) - 1
        cell = self._write(slot, position, int(self._last_token[slot]))
        return self._sample(slot, cell, position + 1)

    def _sample(self, slot: int, cell: int, position: int) -> tuple[int, int, int]:
        entry = self._admission[slot]
        if entry["has_grammar"] and hash((slot, position, self.num_waited)) % 4 < self.lateness:
            self.num_waited += 1
            return slot, WAITED, Finish.NONE
        token = next_token(cell, int(entry["seed"]), position)
        num_eos, num_stop = int(entry["num_eos_ids"]), int(entry["num_stop_ids"])
        finish = Finish.NONE
        if token in entry["stop_ids"][:num_eos]:
            finish = Finish.EOS
        elif token in entry["stop_ids"][num_eos : num_eos + num_stop]:
            finish = Finish.STOP_TOKEN
        self._last_token[slot], self._num_tokens[slot] = token, position + 1
        self._alive[slot] = finish is Finish.NONE
        return slot, token, finish
