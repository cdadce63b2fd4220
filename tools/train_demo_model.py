"""Train the demo model that `albireo-run` serves when no MODEL is given, on the CPU, from text every Python has.

    python tools/train_demo_model.py --steps 3400

made the shipped model in 56 minutes on one core of a two-core AMD EPYC (Zen 4) that others used too: 7.0 million
tokens (several epochs of 2 MB of text), loss 0.79 on the text it trained on, 2.60 on entries held out. The text is the
standard library's (`pydoc_data.topics` and docstrings), under the Python Software Foundation License Version 2.
"""

import argparse
import hashlib
import random
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from demo_training.chats import articles, chat_pairs, conversations
from demo_training.corpus import Entry, gather
from demo_training.export import export
from demo_training.model import Recipe, build_model
from demo_training.tokenizer import train_tokenizer
from demo_training.training import Budget, batches, loss_of, train
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO_MODEL = Path(__file__).parents[1] / "albireo" / "demo_model"
SAMPLE_COMPLETIONS = (
    "Python is",
    "The for statement is used to",
    "Return a copy of the string",
    "A list is",
    "Raise a ValueError if",
)
SAMPLE_QUESTIONS = (
    "Who are you?",
    "What does os.path.join do?",
    "What does len do?",
    "Explain the with statement.",
    "What is the json module for?",
)


def held_out(entry: Entry) -> bool:
    """One in 32 of the entries that nobody is likely to ask about, chosen by name."""
    return entry.weight == 1 and hashlib.sha256(entry.name.encode()).digest()[0] < 8


def make(args: argparse.Namespace, recipe: Recipe) -> None:
    """Corpus to checkpoint: everything `main` does once the arguments are read."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    entries = gather()
    digest = hashlib.sha256("".join(entry.name + entry.text for entry in entries).encode()).hexdigest()
    tokenizer = train_tokenizer(articles(entries, rng) + conversations(chat_pairs(entries), rng), recipe.vocab_size)
    model = build_model(recipe, tokenizer)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(entries)} entries, sha256 {digest[:16]}; {n_parameters / 1e6:.2f} M parameters", flush=True)

    seen = [entry for entry in entries if not held_out(entry)]
    rows_of = batches(seen, tokenizer, recipe.batch_rows, recipe.context_tokens, rng)
    start, mean = time.monotonic(), 0.0
    for step, loss in train(model, rows_of, recipe, Budget(args.steps, args.minutes, args.compile)):
        mean += (loss - mean) / min(step + 1, 50)
        if step % 50 == 49:
            print(f"step {step + 1} loss {mean:.3f} {time.monotonic() - start:.0f} s", flush=True)
        if args.checkpoint and step % 250 == 249:
            export(model, tokenizer, args.checkpoint)
    export(model, tokenizer, args.out)
    unseen = next(batches([entry for entry in entries if held_out(entry)], tokenizer, 64, 256, random.Random(1)))
    with torch.no_grad():
        print(f"loss {mean:.3f} at the end, {loss_of(model, unseen).item():.3f} on held-out entries")


def sample(folder: Path, seed: int) -> None:
    """Print what the model in `folder` says, greedily and at temperature 0.7."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in SAMPLE_QUESTIONS
    ]
    for prompt in (*SAMPLE_COMPLETIONS, *chats):
        inputs = tokenizer(prompt, return_tensors="pt")
        for how in ({"do_sample": False, "temperature": None, "top_p": None}, {"do_sample": True, "temperature": 0.7}):
            torch.manual_seed(seed)
            output = model.generate(**inputs, max_new_tokens=100, **how)
            print(f"--- {'temperature 0.7' if how['do_sample'] else 'greedy'}\n{tokenizer.decode(output[0])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=0, help="train this many steps: the same result every time")
    parser.add_argument("--minutes", type=float, default=45.0, help="else, for this long by the clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    parser.add_argument("--out", type=Path, default=DEMO_MODEL)
    parser.add_argument("--checkpoint", type=Path, help="also write the model here every 250 steps")
    parser.add_argument("--sample", action="store_true", help="train nothing: print what the model in --out says")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # early softmax gradients are denormal, and slow
    warnings.simplefilter("ignore", DeprecationWarning)  # modules of the standard library on their way out
    if args.sample:
        sample(args.out, args.seed)
    else:
        make(args, Recipe())


if __name__ == "__main__":
    main()
