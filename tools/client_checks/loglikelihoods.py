"""What transformers says of the texts that a harness asked a server about: same checkpoint and tokens, in float32."""

import json
from pathlib import Path
from typing import Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


class Tokenizer(Protocol):
    """Of transformers."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def split_tokens(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], int]:
    """Token ids of both texts together, and how many of them are context, as lm-eval counts them: blanks at the
    context's end belong to the continuation."""
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole = tokenizer.encode(stripped + continuation, add_special_tokens=False)
    return whole, len(tokenizer.encode(stripped, add_special_tokens=False))


@torch.inference_mode()
def loglikelihood(model: PreTrainedModel, tokens: list[int], num_context: int) -> float:
    """Of the tokens behind the context."""
    scores = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return float(scores[torch.arange(num_context - 1, len(tokens) - 1), tokens[num_context:]].sum())


def largest_difference(samples: Path, folder: Path) -> tuple[float, int]:
    """Between the loglikelihoods in `samples` (`check_lm_eval`) and those of the checkpoint in `folder`; and how many
    there are."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    differences = []
    for pair in json.loads(samples.read_text()):
        tokens, num_context = split_tokens(tokenizer, pair["context"], pair["continuation"])
        differences.append(abs(pair["loglikelihood"] - loglikelihood(model, tokens, num_context)))
    return max(differences), len(differences)
