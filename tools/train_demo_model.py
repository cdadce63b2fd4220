"""Train the demo model that `albireo-run` serves when no MODEL is given, on the CPU, from text every Python has.

    python tools/train_demo_model.py --steps 3400

made the shipped model in 56 minutes on one core of a two-core AMD EPYC (Zen 4) that others used too: 7.0 million
tokens (several epochs of 2 MB of text), loss 0.79 on the text it trained on, 2.60 on entries held out. The text is the
standard library's (`pydoc_data.topics` and docstrings), under the Python Software Foundation License Version 2.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import hashlib
import importlib
import inspect
import json
import pydoc
import pydoc_data.topics
import random
import re
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

DEMO_MODEL = Path(__file__).parents[1] / "albireo" / "demo_model"
MAX_MODEL_TOKENS = 2048
END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": MAX_MODEL_TOKENS,
    "eos_token": IM_END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
}
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

# ---------------------------------------------------------------- corpus

# Tests and generated tables are not English; turtle, idlelib and lib2to3 carry notices of their own; importing `this`
# prints and `antigravity` opens a browser.
SKIPPED_MODULES = {
    "__main__", "__pycache__", "antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "msilib",
    "ntpath", "nturl2path", "pydoc_data", "site-packages", "test", "tests", "this", "tkinter", "turtle", "turtledemo",
}  # fmt: skip
# Where the text lives is not the name a user types.
PUBLIC_NAMES = {
    "posixpath": "os.path", "_collections_abc": "collections.abc", "_pydecimal": "decimal", "_pyio": "io",
    "_pydatetime": "datetime", "_strptime": "time", "_weakrefset": "weakref", "genericpath": "os.path",
    "_py_abc": "abc", "_sitebuiltins": "site", "_bootlocale": "locale", "_threading_local": "threading",
}  # fmt: skip
# What people ask a Python assistant about: seen more often, so that the few parameters are spent there.
POPULAR = {
    "argparse", "asyncio", "bisect", "builtins", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime",
    "decimal", "enum", "fractions", "functools", "glob", "hashlib", "heapq", "io", "itertools", "json", "logging",
    "math", "os", "os.path", "pathlib", "pickle", "queue", "random", "re", "shutil", "socket", "statistics", "string",
    "struct", "subprocess", "sys", "tempfile", "threading", "time", "typing", "unittest", "urllib",
}  # fmt: skip


# So that a paragraph is not dropped for one dash: `is_english` wants ASCII.
TYPEWRITER = str.maketrans({"\u2026": "...", "\u2013": "-", "\u2014": "-", "\u2019": "'", "\u2018": "'", "\r": ""})


class Documented(NamedTuple):
    """A docstring as found: `kind` is function, class, module, topic or section (of a topic)."""

    name: str
    kind: str
    raw: str


@dataclass(frozen=True)
class Entry:
    """One documented thing: `text` is cleaned prose, `weight` how often an epoch shows it."""

    name: str
    kind: str
    text: str
    weight: int


def clean(text: str) -> str:
    """`text` without reST marks, its prose paragraphs unwrapped to one line each; code keeps its lines."""
    text = inspect.cleandoc(text.translate(TYPEWRITER))
    text = re.sub(r":[a-z:]+:`~?\.?([^`<]+)(?: <[^`]*>)?`", r"`\1`", text)
    text = text.replace("``", "`")
    text = re.sub(r"(?<![\w*])\*{1,2}(\w[^*\n]*)\*{1,2}(?![\w*])", r"\1", text)
    text = re.sub(r"^[ \t]*[*=~^\-_+#]{3,}[ \t]*$", "", text, flags=re.MULTILINE)
    blocks = [block for block in re.split(r"\n\s*\n", text) if is_english(block)]
    return "\n\n".join(unwrap(block) for block in blocks).strip()


def is_english(block: str) -> bool:
    """Letters and spaces dominate: this drops tables, grammar productions and ASCII art."""
    letters = sum(char.isalpha() or char in " \n" for char in block)
    return block.isascii() and letters >= 0.8 * len(block) and "::=" not in block


def unwrap(block: str) -> str:
    """The paragraph on one line if it is prose; left as it is if it is code, a list or a definition."""
    lines = block.strip("\n").split("\n")
    indents = {len(line) - len(line.lstrip()) for line in lines}
    if ">>>" in block or len(indents) > 1 or re.match(r"\s*([-*]|\d+[.)]) ", block):
        return inspect.cleandoc("\n".join(lines))
    return re.sub(r"([.:!?)]) {2,}", r"\1 ", " ".join(line.strip() for line in lines))


# "len(obj) -> int" before, or instead of, a docstring's prose.
SIGNATURE = re.compile(r"^[\w.]+\([^\n]*\)(?: ?-+> ?[^\n.]*)?(\n|\.? ?$)")
DEFINITION = re.compile(r"^(class |classmethod |static )?([\w.]+)\(.*\)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
SECTION = re.compile(r"^(\w[^\n]{3,50})\n[=*\-~^]{4,}\n\n((?:.+\n|\n)+?)(?=\n[^\n]+\n[=*\-~^]{4,}\n|\Z)", re.MULTILINE)


def topics() -> Iterator[Documented]:
    """The language reference as pydoc carries it, with its sections and the definitions inside them."""
    titles = {target[0] if isinstance(target, tuple) else target: name for name, target in pydoc.Helper.topics.items()}
    for key, raw in pydoc_data.topics.topics.items():
        text = raw.translate(TYPEWRITER)
        title = titles.get(key, key).lower()
        yield Documented(f"the {key} statement" if key in pydoc.Helper.keywords else title, "topic", text)
        for match in DEFINITION.finditer(text):
            if match[1] == "class " or "." in match[2]:  # "len(d)" in the chapter on dict is not all there is to len
                yield Documented(match[2], "class" if match[1] == "class " else "function", inspect.cleandoc(match[3]))
        for match in SECTION.finditer(text):
            yield Documented(re.sub(r'["*]', "", match[1].lower()), "section", match[2])


def source_docstrings() -> Iterator[Documented]:
    """Every module, class and function in the standard library's sources; nothing is imported for this."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_MODULES.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata", "lib-")):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
        yield from node_docstrings(tree, PUBLIC_NAMES.get(module, module), "module")


def node_docstrings(node: ast.AST, name: str, kind: str) -> Iterator[Documented]:
    """`node`, the functions and classes in it, and theirs."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
        text := ast.get_docstring(node)
    ):
        yield Documented(name, kind, text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from node_docstrings(child, f"{name}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from node_docstrings(child, f"{name}.{child.name}", "function")


def compiled_docstrings() -> Iterator[Documented]:
    """What is written in C, and so has no source to parse."""
    public = sorted(name for name in sys.stdlib_module_names - SKIPPED_MODULES if not name.startswith("_"))
    for module in ["builtins", *(name for name in public if name != "builtins")]:
        try:
            loaded = importlib.import_module(module)
        except (ImportError, OSError):  # a module of another platform, or one whose C library is missing
            continue
        prefix = "" if loaded is builtins else f"{module}."
        for attribute, value in sorted(vars(loaded).items()):
            if not attribute.startswith("_"):
                yield from object_docstrings(value, prefix + attribute)


def object_docstrings(value: object, name: str) -> Iterator[Documented]:
    """One function or class written in C, with the class's methods."""
    if not (inspect.isbuiltin(value) or inspect.isclass(value)):
        return
    if isinstance(value.__doc__, str):
        yield Documented(name, "class" if inspect.isclass(value) else "function", value.__doc__)
    members = sorted(vars(value).items()) if inspect.isclass(value) else []
    for member, method in members:
        if inspect.ismethoddescriptor(method) and isinstance(method.__doc__, str):
            yield Documented(f"{name}.{member}", "function", method.__doc__)


def gather() -> list[Entry]:
    """Every entry once: the same text under a second name teaches nothing but the wrong name."""
    seen: set[str] = set()
    entries = []
    for name, kind, raw in (*compiled_docstrings(), *source_docstrings(), *topics()):
        text = SIGNATURE.sub("", clean(raw)).strip()
        key = re.sub(r"\W+", "", text).lower()
        if len(text) < 20 or " " not in text or key in seen:
            continue
        seen.add(key)
        entries.append(Entry(name, kind, text, weight=weight(name, kind)))
    return entries


def weight(name: str, kind: str) -> int:
    """How often an epoch asks about `name`: most for what needs no import, less for the popular modules, once else."""
    parts = name.split(".")
    if is_private(name) or len(parts) > 3:
        return 1
    if hasattr(builtins, parts[0]) or name.startswith("os.path.") or name in POPULAR:
        return 6
    return 3 if kind in ("topic", "section") else 2 if parts[0] in POPULAR else 1


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


# ---------------------------------------------------------------- chat

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that knows Python.",
    "You are Albireo's demo model. Answer questions about Python.",
    "Answer briefly.",
    "You are a Python expert. Be concise.",
    "Be helpful and polite.",
)
QUESTIONS = {
    "function": (
        "What does {0} do?", "What does {0} do in Python?", "Explain {0}.", "What is {0}?", "What is {0} for?",
        "How do I use {0}?", "What does {0}() do?", "Tell me about {0}.", "Describe {0}.",
        "What does the {0} function do?",
    ),
    "class": (
        "What is {0}?", "What is {0} in Python?", "Explain {0}.", "What is the {0} class?", "Tell me about {0}.",
        "What is {0} for?", "What does {0} do?", "How do I use {0}?", "Describe the {0} class.", "What is a {0}?",
    ),
    "module": (
        "What is {0}?", "What is the {0} module?", "What is the {0} module for?", "Explain the {0} module.",
        "What does the {0} module do?", "Tell me about the {0} module.", "Tell me about {0}.",
        "What can I do with {0}?",
    ),
    "topic": (
        "What is {0}?", "Explain {0}.", "Explain {0} in Python.", "Tell me about {0}.", "How does {0} work?",
        "What are {0} in Python?", "Tell me about {0} in Python.", "Describe {0}.",
    ),
}  # fmt: skip
QUESTIONS["section"] = QUESTIONS["topic"]

# Written for this model, not taken from Python: without it a greeting is answered by some docstring.
SMALL_TALK = (
    (
        ("Hello", "Hi", "Hello!", "Hi!", "Hey", "Hi there", "Hello there!", "Good morning"),
        "Hello! I am the small demo model that comes with Albireo. Ask me about Python.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Are you a language model?"),
        "I am the demo model of Albireo, a small language model with a few million parameters. I was trained on the "
        "documentation of Python's standard library, so I can only talk about Python, and I make mistakes.",
    ),
    (
        ("What can you do?", "Help", "Help me", "What do you know?", "How can you help me?", "What should I ask?"),
        "I can tell you what a part of Python is for. Ask, for example: What does os.path.join do?",
    ),
    (
        ("What is Albireo?", "Tell me about Albireo.", "What is albireo-run?"),
        "Albireo is a runtime that serves large language models behind an OpenAI-compatible endpoint. "
        "I am the small model that it serves when no other model is given.",
    ),
    (
        ("How are you?", "How are you today?", "How is it going?"),
        "I am a small language model and I am running well, thank you. What would you like to know about Python?",
    ),
    (("Thanks", "Thank you", "Thank you!", "Thanks a lot!"), "You are welcome."),
    (("Bye", "Goodbye", "Good night", "See you"), "Goodbye!"),
    (
        ("What is Python?", "What is Python", "Explain Python.", "Tell me about Python.", "Describe Python."),
        "Python is an interpreted, interactive, object-oriented programming language. It has modules, exceptions, "
        "dynamic typing, very high level dynamic data types, and classes, and it comes with a large standard library.",
    ),
    (
        (
            "What is the capital of France?", "What is the weather today?", "Tell me a joke.", "Write a poem.",
            "Tell me a story.", "Who is the president?", "What is the meaning of life?", "Translate this to German.",
        ),
        "I only know the documentation of Python, so I cannot help with that. Ask me about Python instead.",
    ),
)  # fmt: skip


def answer(text: str, limit: int = 500) -> str:
    """The first prose paragraphs of `text`, within `limit` characters unless the first alone is longer."""
    kept: list[str] = []
    for block in text.split("\n\n"):
        is_prose = "\n" not in block and " " in block and block[0].isalpha() and block[-1] in ".!):"
        if kept and (not is_prose or sum(map(len, kept)) + len(block) > limit):
            break
        if is_prose:
            kept.append(block.removesuffix(":") + "." * block.endswith(":"))  # what it announced is not prose
    return "\n\n".join(kept)


class Pair(NamedTuple):
    """The ways to ask one thing, its answer, and how often an epoch asks it."""

    asked: tuple[str, ...]
    reply: str
    weight: int


def chat_pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Every public entry that starts with prose, and the small talk."""
    pairs = {asked[0]: Pair(asked, reply, weight=12) for asked, reply in SMALL_TALK}
    for entry in entries:
        reply = answer(entry.text)
        # A name has one answer, the docstring's before the reference's: two would be harder to learn.
        if reply and len(reply) < 1200 and entry.name not in pairs and not is_private(entry.name):
            asked = tuple(question.format(entry.name) for question in QUESTIONS[entry.kind])
            pairs[entry.name] = Pair(asked, reply, entry.weight)
    return list(pairs.values())


def turn(role: str, content: str) -> str:
    """One message as CHAT_TEMPLATE renders it."""
    return f"{IM_START}{role}\n{content}{IM_END}\n"


def conversations(pairs: Sequence[Pair], rng: random.Random) -> list[str]:
    """An epoch of chats, of one to three exchanges each, with or without a system prompt, asked in varied ways."""
    turns = []
    for asked, reply, count in pairs:
        for question in rng.choices(asked, k=count):
            careless = question[0].lower() + question[1:].rstrip("?.!")
            turns.append(turn("user", careless if rng.random() < 0.15 else question) + turn("assistant", reply))
    rng.shuffle(turns)
    chats = []
    while turns:
        system = turn("system", rng.choice(SYSTEM_PROMPTS)) if rng.random() < 0.3 else ""
        n_exchanges = rng.choice((1, 1, 1, 1, 2, 3))
        chats.append(system + "".join(turns[:n_exchanges]) + END_OF_TEXT)
        del turns[:n_exchanges]
    return chats


def articles(entries: Sequence[Entry], rng: random.Random) -> list[str]:
    """An epoch of plain text: each entry as a definition, or bare, so that a completion can start from either."""
    texts = []
    for entry in entries:
        if entry.kind == "section" or (len(entry.text) < 120 and not entry.weight > 2):
            continue  # inside its topic already; or one line, which the chats show
        for _ in range(min(entry.weight, 2)):
            heading = rng.choice((f"{entry.name}: ", f"{entry.name}\n\n", "", ""))
            texts.append(heading + entry.text + END_OF_TEXT)
    return texts


# ---------------------------------------------------------------- model


@dataclass(frozen=True)
class Recipe:
    """The sizes and rates of the shipped model; 8 x 256 tokens a step."""

    vocab_size: int = 3072
    hidden_size: int = 192
    intermediate_size: int = 576
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64  # what attention kernels are compiled for
    context_tokens: int = 256  # half the attention work of 512, which comes in at `long_from`
    long_from: float = 0.85  # of the run
    batch_rows: int = 8
    muon_lr: float = 0.01
    adam_lr: float = 0.004
    weight_decay: float = 0.05
    warmup: float = 0.03  # of the run
    cooldown: float = 0.6  # of the run


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE, so that no input is unknown; the specials take the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True, normalized=False) for token in (END_OF_TEXT, IM_START, IM_END, PAD)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=MAX_MODEL_TOKENS,
        # What every reader of the format assumes when it does not know this key.
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        eos_token_id=tokenizer.token_to_id(IM_END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation("eager")  # compiled, it beats the CPU's flash kernel at these lengths
    return model


def export(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model` in bf16 in the Hugging Face layout, each file put in place whole: a server may be loading it."""
    half = Qwen3ForCausalLM(model.config).bfloat16()
    half.load_state_dict(model.state_dict())
    half.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        eos_token_id=[tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT)],
        pad_token_id=tokenizer.token_to_id(PAD),
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        half.save_pretrained(scratch)
        tokenizer.save(f"{scratch}/tokenizer.json")
        Path(scratch, "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
        Path(scratch, "chat_template.jinja").write_text(CHAT_TEMPLATE)
        for path in Path(scratch).iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)


# ---------------------------------------------------------------- training


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


def held_out(entry: Entry) -> bool:
    """One in 32 of the entries that nobody is likely to ask about, chosen by name."""
    return entry.weight == 1 and hashlib.sha256(entry.name.encode()).digest()[0] < 8


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
