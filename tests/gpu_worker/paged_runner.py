"""Runs a `DecoderModel` over a paged cache with shuffled blocks, chunk by chunk, as the worker does."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel

MAX_LEN = 640
BLOCK_SIZE = 16


class PagedRunner:
    """Up to `num_slots` sequences of at most `MAX_LEN` tokens; a sequence is known by its slot."""

    def __init__(self, model: DecoderModel, num_slots: int = 5, seed: int = 0) -> None:
        self._model = model
        blocks_per_seq = MAX_LEN // BLOCK_SIZE
        num_blocks = num_slots * blocks_per_seq
        self._kv = KVCache(model.config, num_blocks, BLOCK_SIZE, model.dtype)
        shuffled = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))
        self._block_table = shuffled.view(num_slots, blocks_per_seq).to(torch.int32)
        self._lengths = [0] * num_slots

    def step(self, work: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Append tokens to sequences, all in one step; logits `[n, vocab_size]` of each sequence's new tokens."""
        slots = sorted(work, key=lambda slot: len(work[slot]) > 1)
        counts = [len(work[slot]) for slot in slots]
        positions = torch.cat(
            [torch.arange(self._lengths[slot], self._lengths[slot] + len(work[slot])) for slot in slots]
        )
        rows = torch.repeat_interleave(torch.tensor(slots), torch.tensor(counts))
        blocks = self._block_table[rows, positions // BLOCK_SIZE].long()
        for slot, count in zip(slots, counts, strict=True):
            self._lengths[slot] += count
        lengths = [self._lengths[slot] for slot in slots]
        batch = AttentionBatch(
            block_table=self._block_table,
            slots=torch.tensor(slots, dtype=torch.int32),
            query_start=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            slot_mapping=blocks * BLOCK_SIZE + positions % BLOCK_SIZE,
            num_decodes=counts.count(1),
            max_query_len=max(counts),
            max_seq_len=max(lengths),
        )
        input_ids = torch.tensor([token for slot in slots for token in work[slot]])
        hidden = self._model.forward(input_ids, positions, batch, self._kv)
        logits = torch.split(self._model.compute_logits(hidden), counts)
        return dict(zip(slots, logits, strict=True))

    def prefill(self, slot: int, prompt: Sequence[int], chunk: int = MAX_LEN) -> Tensor:
        """Logits of a prompt, `chunk` tokens a step."""
        pieces = [prompt[start : start + chunk] for start in range(0, len(prompt), chunk)]
        return torch.cat([self.step({slot: piece})[slot] for piece in pieces])

    def generate(self, prompts: Mapping[int, Sequence[int]], num_tokens: int) -> dict[int, list[int]]:
        """Greedy tokens of prompts prefilled one by one, then decoded together."""
        last = {slot: self.prefill(slot, prompt)[-1] for slot, prompt in prompts.items()}
        tokens = {slot: [int(logits.argmax())] for slot, logits in last.items()}
        for _ in range(num_tokens - 1):
            logits = self.step({slot: generated[-1:] for slot, generated in tokens.items()})
            for slot, row in logits.items():
                tokens[slot].append(int(row[-1].argmax()))
        return tokens
