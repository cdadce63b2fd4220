"""transformers' side of the parity job, a process of its own whose GPU memory is free when it ends.

    python -m gpu_sections.parity_reference DEVICE FOLDER FAMILY...

Writes a random float32 checkpoint per family into FOLDER/FAMILY and `ready`, then FOLDER/FAMILY.json with what
transformers makes of the prompts: greedy tokens in float32 with the largest logprobs, and the logprobs of the whole
text as forced, by float32 weights and by bfloat16 ones (how far apart two right programs are).
"""

import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from transformers import AutoModelForCausalLM

Model = Any
"""transformers' types do not say what can be called."""

NEW_TOKENS = 48
PROMPT_LENGTHS = (1, 2, 15, 16, 17, 64, 150, 300)
VOCAB_SIZE = 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
"""Heads of 64, as real models have them; the family's own rope, biases, norms and windows are checkpoints.py's."""
HEAD_DIMS = {"llama-llama3": 64, "mistral": 64, "qwen3": 128}


class Greedy(Struct, frozen=True):
    """One prompt and its continuation."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    """Of `tokens`, float32."""
    best: list[list[float]]
    """[tokens, vocabulary] float32 logprobs at each of them, to tell a tie from a mistake."""
    forced: list[float]
    """Of prompt and tokens but the first, float32."""
    forced_bf16: list[float]
    """The same by transformers in bfloat16."""


def main() -> None:
    device, folder, families = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for family in families:
        write(folder / family, family)
    (folder / "ready").touch()
    for family in families:
        found = reference(folder / family, device)
        # under another name until it is whole: somebody waits for the file
        written = folder / f"{family}.json.part"
        written.write_bytes(msgspec.json.encode(found))
        written.rename(folder / f"{family}.json")
        print(f"{family}: reference is there", file=sys.stderr, flush=True)


def write(path: Path, family: str) -> None:
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from checkpoints import write_checkpoint  # type: ignore[import-not-found,unused-ignore]

    sizes = dict(SIZES)
    if family in HEAD_DIMS:
        sizes["head_dim"] = HEAD_DIMS[family]
    write_checkpoint(path, family, **sizes)  # type: ignore[arg-type,unused-ignore]


def prompts() -> list[list[int]]:
    rng = random.Random(11)
    return [rng.choices(range(4, VOCAB_SIZE), k=length) for length in PROMPT_LENGTHS]


@torch.inference_mode()
def reference(path: Path, device: str) -> list[Greedy]:
    model = load(path, torch.float32, device)
    sequences = [generate(model, prompt, device) for prompt in prompts()]
    scores = [logprobs(model, sequence, device) for sequence in sequences]
    rounded_model = load(path, torch.bfloat16, device)
    scores_bf16 = [logprobs(rounded_model, sequence, device) for sequence in sequences]
    found = []
    for prompt, sequence, exact, rounded in zip(prompts(), sequences, scores, scores_bf16, strict=True):
        first = len(prompt) - 1
        forced, forced_bf16 = chosen(exact, sequence), chosen(rounded, sequence)
        tokens = sequence[len(prompt) :]
        found.append(Greedy(prompt, tokens, forced[first:], exact[first:].tolist(), forced, forced_bf16))
    return found


def load(path: Path, dtype: torch.dtype, device: str) -> Model:
    """Loaded anew for each type: a model that is converted has rounded rope frequencies, which a loaded one has not."""
    model: Model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model.generation_config.eos_token_id = None
    return model.to(device).eval()


def generate(model: Model, prompt: list[int], device: str) -> list[int]:
    """transformers' own greedy generation: the prompt and NEW_TOKENS more."""
    ids = torch.tensor([prompt], device=device)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=3
    )
    sequence: list[int] = made[0].tolist()
    return sequence


def logprobs(model: Model, sequence: list[int], device: str) -> torch.Tensor:
    """[tokens - 1, vocabulary] float32 on the CPU: at each position those of the next token."""
    logits = model(torch.tensor([sequence], device=device)).logits[0, :-1]
    return torch.as_tensor(logits.float().log_softmax(-1).cpu())


def chosen(scores: torch.Tensor, sequence: list[int]) -> list[float]:
    """Logprobs of the tokens that come next."""
    found: list[float] = scores.gather(1, torch.tensor(sequence[1:])[:, None])[:, 0].tolist()
    return found


if __name__ == "__main__":
    main()
