"""The training loop: batches, loss, optimizers and their rate."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from demo_training.chats import articles, chat_pairs, conversations
from demo_training.corpus import Entry
from demo_training.model import Recipe


def batches(
    entries: Sequence[Entry], tokenizer: Tokenizer, n_rows: int, n_tokens: int, rng: random.Random
) -> Iterator[torch.Tensor]:
    """Endless [n_rows, n_tokens] int64 batches of one stream of documents; each epoch asks, orders and packs anew."""
    pairs = chat_pairs(entries)
    left: list[int] = []
    while True:
        texts = conversations(pairs, rng) + articles(entries, rng)
        rng.shuffle(texts)
        stream = left + [token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids]
        n_full = len(stream) // (n_rows * n_tokens)
        n_used = n_full * n_rows * n_tokens
        left = stream[n_used:]
        yield from torch.tensor(stream[:n_used]).view(n_full, n_rows, n_tokens)


def loss_of(model: Qwen3ForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross entropy in nats over [n_rows, n_tokens] int64, the matrices multiplied in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    muon = torch.optim.Muon(matrices, recipe.muon_lr, recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for group in (*muon.param_groups, *adam.param_groups):
        group["initial_lr"] = group["lr"]
    return [muon, adam]


def set_learning_rate(opts: Sequence[torch.optim.Optimizer], progress: float, recipe: Recipe) -> None:
    """Linear warm-up, plateau, linear cool-down to zero; `progress` in [0, 1)."""
    scale = min(1.0, (progress + 1e-4) / recipe.warmup, (1.0 - progress) / recipe.cooldown)
    for group in (group for opt in opts for group in opt.param_groups):
        group["lr"] = group["initial_lr"] * scale


@dataclass(frozen=True)
class Budget:
    """When to stop: after `steps`, or if that is 0 after `minutes` of wall clock. The learning rate follows it."""

    steps: int
    minutes: float
    is_compiled: bool

    def progress(self, step: int, elapsed_s: float) -> float:
        return step / self.steps if self.steps else elapsed_s / (60 * self.minutes)


def train(
    model: Qwen3ForCausalLM, rows_of: Iterator[torch.Tensor], recipe: Recipe, budget: Budget
) -> Iterator[tuple[int, float]]:
    """Train `model` in place until the budget is spent, giving (step, loss) after every step."""
    opts = optimizers(model, recipe)
    step_loss = torch.compile(loss_of, dynamic=False) if budget.is_compiled else loss_of
    start = time.monotonic()
    for step, rows in enumerate(rows_of):
        progress = budget.progress(step, time.monotonic() - start)
        if progress >= 1.0:
            return
        set_learning_rate(opts, progress, recipe)
        is_long = progress > recipe.long_from
        loss = step_loss(model, rows.view(-1, 2 * recipe.context_tokens) if is_long else rows)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        yield step, loss.item()
