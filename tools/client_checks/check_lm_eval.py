"""lm-evaluation-harness, `local-completions`, on a task of its own: multiple choice by loglikelihood, no network.

`ALBIREO_SAMPLES`, where it is set, is the file that gets each item's texts and loglikelihood.
"""

import json
import os
import tempfile
from pathlib import Path

from command import run
from steps import Check

ITEMS = [
    ("The os module", " provides a portable way of using operating system dependent functionality.", " eats fish."),
    ("If the argument is omitted,", " the current working directory is used.", " purple trains sleep."),
    ("Raises ValueError", " if the list is empty.", " because tomorrow is a colour."),
    ("Return True if", " path is an existing file.", " the moon is made of cheese."),
    ("def join(a, b):\n    return", " a + b", " 17 elephants"),
    ("Changed in version 3.", "11: Added support for", "q: zzz"),
    ("A list is", " a mutable sequence.", " 🙂 naïve 日本語"),
    ("The quick brown fox", " jumps over the lazy dog", ""),
]
LONG = "The module defines the following functions and constants. " * 40

TASK = """task: albireo_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
metadata:
  version: 1
"""

GENERATION = """task: albireo_generation
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: [".", "\\n\\n"]
  max_gen_toks: 24
  do_sample: false
metric_list:
  - metric: exact_match
metadata:
  version: 1
"""

check = Check()


def write_task(folder: Path) -> None:
    """The task's yaml and its items."""
    items = [(question, first, second or " sits under it") for question, first, second in ITEMS]
    items += [(LONG[:-1], " They are described below.", " Bananas.")]
    lines = [json.dumps({"question": question, "choices": choices}) for question, *choices in items]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "albireo_local.yaml").write_text(TASK.format(items=folder / "items.jsonl"))
    (folder / "albireo_generation.yaml").write_text(GENERATION.format(items=folder / "items.jsonl"))


def evaluate(name: str, model: str, path: str, task: str, *more: str) -> None:
    """Runs lm_eval on a task in the folder `name`; what it writes is in its folder `out`."""
    write_task(Path(name))
    arguments = {
        "model": check.model, "base_url": check.base_url + path, "tokenizer": check.tokenizer,
        "num_concurrent": 4, "max_retries": 1, "max_length": 1024,
    }  # fmt: skip
    run(
        "lm_eval", "--model", model, "--tasks", task, "--include_path", name,
        "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items()),
        "--output_path", f"{name}/out", "--log_samples", *more,
    )  # fmt: skip


def generation(model: str, path: str, *more: str) -> str:
    with tempfile.TemporaryDirectory() as name:
        evaluate(name, model, path, "albireo_generation", *more)
        (samples,) = Path(name).glob("out/**/samples_*.jsonl")
        texts = [json.loads(line)["resps"][0][0] for line in samples.open()]
    assert any(texts) and not any("." in text for text in texts), texts
    return f"{len(texts)} answers, the first {texts[0]!r}"


def loglikelihoods() -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluate(name, "local-completions", "/v1/completions", "albireo_local")
        (results,) = folder.glob("out/**/results_*.json")
        (samples,) = folder.glob("out/**/samples_*.jsonl")
        accuracy = json.loads(results.read_text())["results"]["albireo_local"]["acc,none"]
        found = [told(sample) for line in samples.open() for sample in [json.loads(line)]]
    pairs = [pair for sample in found for pair in sample]
    if target := os.environ.get("ALBIREO_SAMPLES"):
        Path(target).write_text(json.dumps(pairs))
    return f"acc {accuracy:.2f}, {len(pairs)} loglikelihoods, the first {pairs[0]['loglikelihood']:.3f}"


def told(sample: dict) -> list[dict]:
    """Texts and loglikelihood of each choice of an item."""
    requests = [sample["arguments"][key] for key in sorted(sample["arguments"])]
    return [
        {"context": request["arg_0"], "continuation": request["arg_1"], "loglikelihood": float(response[0][0])}
        for request, response in zip(requests, sample["resps"], strict=True)
    ]


check.step("multiple choice by local-completions", loglikelihoods)
check.step("generate_until by local-completions", lambda: generation("local-completions", "/v1/completions"))
check.step(
    "generate_until by local-chat-completions",
    lambda: generation("local-chat-completions", "/v1/chat/completions", "--apply_chat_template"),
)
check.end()
