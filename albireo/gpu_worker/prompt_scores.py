"""Which of a step's prompt tokens want their log-probability, and where the logits for it come from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from albireo.shm.plan_ring import PlanSlot

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Parallel arrays [n]."""

    rows: npt.NDArray[np.int64]
    """Tokens of the step whose logits predict the targets."""
    targets: Int32s
    """Token ids to score."""
    positions: Int32s
    """Of the targets in their sequences."""
    slots: Int32s
    num_top: Int32s


def find_prompt_scores(plan: PlanSlot, num_prompt_logprobs: Int32s, num_rows: int) -> PromptScores | None:
    """What `layout.CHUNK` says of the plan's chunks; their tokens come after `num_rows` others in the step, and
    `num_prompt_logprobs` [num_slots] says how many stand beside each. None when no chunk asks, as on almost every
    step. One turn per chunk that asks."""
    header = plan.header[0]
    chunks = plan.chunks[: header["num_chunks"]]
    ends = chunks["start"] + chunks["num_tokens"]
    asking = np.flatnonzero(chunks["score_from"] <= ends)
    if not asking.size:
        return None
    offsets = np.cumsum(chunks["num_tokens"]) - chunks["num_tokens"]
    parts = [_of_chunk(plan, chunks[index], int(offsets[index])) for index in asking.tolist()]
    counts = [targets.size for _, targets, _ in parts]
    slots = np.repeat(chunks["slot"][asking], counts)
    return PromptScores(
        rows=np.concatenate([rows for rows, _, _ in parts]) + num_rows,
        targets=np.concatenate([targets for _, targets, _ in parts]),
        positions=np.concatenate([positions for _, _, positions in parts]),
        slots=slots,
        num_top=num_prompt_logprobs[slots],
    )


def _of_chunk(plan: PlanSlot, chunk: np.void, offset: int) -> tuple[npt.NDArray[np.int64], Int32s, Int32s]:
    """(rows, targets, positions) of one chunk, whose tokens begin at `offset` of the plan's."""
    start, end, next_token = int(chunk["start"]), int(chunk["start"] + chunk["num_tokens"]), int(chunk["next_token"])
    first = max(int(chunk["score_from"]), start + 1)
    positions = np.arange(first, end + (next_token >= 0), dtype=np.int32)
    targets = plan.chunk_tokens[offset + first - start : offset + end - start]
    if next_token >= 0:
        targets = np.append(targets, np.int32(next_token))
    return positions.astype(np.int64) - 1 - start + offset, targets, positions
