"""Sampling on the GPU, to the token as `sampling.params` defines it."""

from typing import Any, Final

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from albireo.gpu_worker.cuda.kernels.adjust_rows import adjust_rows
from albireo.gpu_worker.cuda.kernels.choose_tokens import choose_tokens
from albireo.gpu_worker.cuda.kernels.gather_candidates import gather_candidates
from albireo.gpu_worker.cuda.kernels.observe_tokens import observe_tokens
from albireo.gpu_worker.cuda.kernels.score_tokens import gather_scored, survey_scored, write_scores
from albireo.gpu_worker.cuda.kernels.survey_rows import survey_rows
from albireo.gpu_worker.cuda.row_masks import RowMasks, SharedMasks
from albireo.gpu_worker.cuda.slot_extras import SlotExtras
from albireo.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS

TARGET_PROGRAMS: Final = 1056
"""Programs that a batch is cut into at least, where its rows have tiles enough: 8 for each of an H100's 132 SMs."""
GUESSED_NUCLEUS: Final = 512
"""Blocks that have a token in the list from which a nucleus is drawn. What a language model leaves of a vocabulary at
temperature 1 and top_p 0.95 is mostly less; where it is more, the row itself is drawn from."""
_EXACT: Final = {"enable_fp_fusion": False}
"""The definition rounds every operation."""


class CudaSampler:
    """Samples rows of whole vocabularies; the same kernels whatever the rows ask for, so that they can be captured.

    Owned by the worker's main thread; all but `admit` can be captured. `admissions` int32 [num_slots, 48] holds each
    slot's `layout.ADMISSION` and is written by the caller, on the same stream. Working memory, allocated once:
    5 to 6 bytes per row and token for adjusted logits and counts, and 8 * `capacity` bytes per row.

    tile, choose_tile  tokens that a program looks at at once, powers of two
    block              tokens of which the largest logit is kept; divides `tile`
    capacity           tokens of a row's list; a row that finds more is drawn from as a whole, which takes longer
    """

    def __init__(
        self,
        vocab_size: int,
        admissions: Tensor,
        max_rows: int,
        max_model_len: int,
        device: torch.device,
        masks: SharedMasks | None = None,
        *,
        tile: int = 1024,
        choose_tile: int = 2048,
        block: int = 128,
        capacity: int = 4096,
        target_programs: int = TARGET_PROGRAMS,
    ) -> None:
        del max_model_len  # counts are kept by token id, whatever the length
        num_tiles = triton.cdiv(vocab_size, tile)
        self._vocab_size = vocab_size
        self._admissions = admissions
        self._max_rows = max_rows
        self._num_tiles = num_tiles
        self._target_programs = target_programs
        self._tiles = {"VOCAB": vocab_size, "TILE": tile}
        self._choice = {"VOCAB": vocab_size, "TILE": choose_tile}
        self._blocks = {"BLOCK": block, "MAX_SPLITS": num_tiles}
        num_blocks = triton.cdiv(vocab_size, block)
        self._splits = {"MAX_SPLITS": num_tiles, "SPLITS": triton.next_power_of_2(num_tiles), "CAPACITY": capacity}
        self._gathering = {
            **self._blocks, **self._splits, "BLOCKS": triton.next_power_of_2(num_blocks),
        }  # fmt: skip
        self._guess = max(1, min(GUESSED_NUCLEUS, num_blocks // 2))
        self._extras = SlotExtras(len(admissions), vocab_size, device)
        self.masks = RowMasks(masks, admissions, max_rows, device)

        def scratch(width: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(max_rows, width, dtype=dtype, device=device)

        self._adjusted = scratch(vocab_size, torch.float32)
        self._maxima = scratch(num_tiles * (tile // block), torch.int32)
        self._tops, self._firsts = scratch(num_tiles, torch.int32), scratch(num_tiles, torch.int32)
        self._scores, self._winners = scratch(num_tiles, torch.float64), scratch(num_tiles, torch.int32)
        self._masses, self._num_larger = scratch(num_tiles, torch.int64), scratch(num_tiles, torch.int32)
        self._num_found, self._floors = scratch(1, torch.int32), scratch(1, torch.int32)
        self._found_keys, self._found_ids = scratch(capacity, torch.int32), scratch(capacity, torch.int32)

    def admit(self, entries: NDArray[Any], extras: NDArray[np.int32]) -> None:
        """Requests enter slots: `layout.ADMISSION` [n] and the plan's `extras`, on the host. Not captured; in stream
        order before the step that first samples for them."""
        assert self.masks.are_served or not entries["has_grammar"].any(), "a grammar, and no masks"
        self._extras.admit(entries, extras)

    def sample(self, logits: Tensor, slots: Tensor, alive: Tensor, positions: Tensor, tokens: Tensor) -> None:
        """Writes the token of each row to `tokens`; the logits are left as they are.

        logits     float32 or bfloat16 [n, >= vocab], n <= max_rows, the last dimension contiguous; may be a view
        slots      int32 [n]; -1 is padding
        alive      an integer type or bool [num_slots]; a row of a slot with 0 gets token -1, like padding
        positions  int32 [n]: position in its sequence of the token that is sampled
        tokens     int32 [n]; WAITED where a grammar's mask is not there
        """
        if len(slots):
            alive = alive.view(torch.uint8) if alive.dtype == torch.bool else alive
            self.draw(logits, self.masks.take(slots, alive, positions), alive, positions, tokens)

    def draw(self, logits: Tensor, slots: Tensor, alive: Tensor, positions: Tensor, tokens: Tensor) -> None:
        """`sample` with `slots` from `masks.take`."""
        n, stride = len(slots), logits.stride(0)
        assert n <= self._max_rows and logits.stride(1) == 1 and logits.shape[1] >= self._vocab_size
        num_splits, tiles_per_split = self._split(n)
        grid, extras, allowed = (n, num_splits), self._extras, self.masks.allowed
        rows = (logits, stride, self._adjusted, self._admissions, slots, alive, positions)
        adjust_rows[grid](
            *rows, allowed, extras.counts, extras.bias_ids, extras.bias_values, extras.word_lasts,
            extras.word_beginnings, extras.recent, tiles_per_split, **self._tiles, MAX_BIAS=MAX_LOGIT_BIAS,
            MAX_WORDS=MAX_BAD_WORDS, WORD_TOKENS=MAX_BAD_WORD_TOKENS, MAX_STOP_IDS=MAX_STOP_TOKEN_IDS,
            MASK_STRIDE=allowed.stride(0), **_EXACT,
        )  # fmt: skip
        survey_rows[grid](
            *rows, self._maxima, self._tops, self._firsts, self._scores, self._winners, self._num_found,
            tiles_per_split, **self._tiles, **self._blocks, **_EXACT,
        )  # fmt: skip
        gather_candidates[grid](
            *rows, self._maxima, self._tops, self._num_found, self._found_keys, self._found_ids, self._floors,
            self._masses, tiles_per_split, num_splits, **self._tiles, **self._gathering, GUESS=self._guess, **_EXACT,
        )  # fmt: skip
        choose_tokens[(n,)](
            *rows, self._tops, self._firsts, self._scores, self._winners, self._num_found, self._found_keys,
            self._found_ids, self._floors, self._masses, tokens, num_splits, **self._choice, **self._splits,
            num_warps=8, **_EXACT,
        )  # fmt: skip

    def observe(self, slots: Tensor, tokens: Tensor) -> None:
        """These tokens were sampled for these slots, int32 [n] both, each slot once; below 0 stands for none."""
        if len(slots):
            observe_tokens[(len(slots),)](
                slots, tokens, self._admissions, self._extras.counts, self._extras.recent, VOCAB=self._vocab_size,
                WORD_TOKENS=MAX_BAD_WORD_TOKENS, num_warps=1,
            )  # fmt: skip

    def score(self, logits: Tensor, targets: Tensor, positions: Tensor, num_top: Tensor, out: Tensor) -> None:
        """Fills in `out`, int32 [n, 48]: `layout.LOGPROB` without slot and generation; on the device or pinned on the
        host. Unused top ids are -1. A target below 0 leaves its record with that token and else as it was.

        logits     as in `sample`, any n
        targets    int32 [n]: token ids
        positions  int32 [n]: what the record says
        num_top    int32 [n]: how many of the most likely tokens, at most MAX_LOGPROBS
        """
        assert logits.stride(1) == 1 and logits.shape[1] >= self._vocab_size and out.stride(0) == 48
        for start in range(0, len(targets), self._max_rows):
            part = slice(start, start + self._max_rows)
            self._score(logits[part], targets[part], positions[part], num_top[part], out[part])

    def _score(self, logits: Tensor, targets: Tensor, positions: Tensor, num_top: Tensor, out: Tensor) -> None:
        n, stride = len(targets), logits.stride(0)
        num_splits, tiles_per_split = self._split(n)
        survey_scored[(n, num_splits)](
            logits, stride, targets, self._maxima, self._tops, self._firsts, self._num_found, tiles_per_split,
            **self._tiles, **self._blocks, **_EXACT,
        )  # fmt: skip
        gather_scored[(n, num_splits)](
            logits, stride, targets, num_top, self._maxima, self._tops, self._num_found, self._found_keys,
            self._found_ids, self._masses, self._num_larger, tiles_per_split, num_splits, **self._tiles,
            **self._gathering, **_EXACT,
        )  # fmt: skip
        write_scores[(n,)](
            logits, stride, targets, positions, num_top, self._tops, self._num_found, self._found_keys,
            self._found_ids, self._masses, self._num_larger, out, num_splits, **self._choice, **self._splits,
            num_warps=8, **_EXACT,
        )  # fmt: skip

    def _split(self, num_rows: int) -> tuple[int, int]:
        """(splits, tiles in each) that rows are cut into."""
        wanted = min(self._num_tiles, triton.cdiv(self._target_programs, num_rows))
        tiles_per_split = triton.cdiv(self._num_tiles, wanted)
        return triton.cdiv(self._num_tiles, tiles_per_split), tiles_per_split
