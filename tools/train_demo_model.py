"""Train the demo model that `albireo-run` serves when no MODEL is given, on the CPU, from text every Python has.

TODO
"""

from __future__ import annotations

import argparse
import ast
import builtins
import hashlib
import importlib
import inspect
import json
import math
import os
import pydoc
import pydoc_data.topics
import random
import re
import shutil
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
)

# ---------------------------------------------------------------- corpus

# Tests and generated tables are not English; turtle, idlelib and lib2to3 carry notices of their own; importing `this`
# prints and `antigravity` opens a browser.
SKIPPED_MODULES = frozenset(
    "__main__ antigravity encodings ensurepip idlelib lib2to3 pydoc_data site-packages test tests this turtle "
    "turtledemo distutils msilib nturl2path ntpath macpath config-3 __pycache__ _sysconfigdata".split()
)
# Where the text lives is not the name a user types.
PUBLIC_NAMES = {
    "posixpath": "os.path", "_collections_abc": "collections.abc", "_pydecimal": "decimal", "_pyio": "io",
    "_pydatetime": "datetime", "_strptime": "time", "_weakrefset": "weakref", "genericpath": "os.path",
    "_py_abc": "abc", "_sitebuiltins": "site", "_bootlocale": "locale", "_threading_local": "threading",
}  # fmt: skip
# What people ask a Python assistant about: seen more often, so that the few parameters are spent there.
POPULAR = frozenset(
    "builtins os os.path sys re json math random time datetime collections itertools functools pathlib string "
    "subprocess threading asyncio logging argparse csv copy heapq bisect statistics typing dataclasses enum io "
    "contextlib socket shutil tempfile glob pickle hashlib urllib decimal fractions queue struct unittest".split()
)


@dataclass(frozen=True)
class Entry:
    """One documented thing: `text` is cleaned prose, `weight` how often an epoch shows it."""

    name: str
    kind: str
    text: str
    weight: int


def clean(text: str) -> str:
    """`text` without reST marks, its prose paragraphs unwrapped to one line each; code keeps its lines."""
    text = inspect.cleandoc(text.replace("\r", ""))
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
    return " ".join(line.strip() for line in lines)


def topics() -> Iterator[tuple[str, str, str]]:
    """(name, kind, raw text) of the language reference, its sections and the definitions inside it."""
    titles = {target[0] if isinstance(target, tuple) else target: name for name, target in pydoc.Helper.topics.items()}
    for key, text in pydoc_data.topics.topics.items():
        title = titles.get(key, key).lower()
        yield (f"the {key} statement" if key in pydoc.Helper.keywords else title), "topic", text
        for match in re.finditer(r"^(?:class |classmethod |static )?([\w.]+)\(.*\)\n\n((?:   .*\n|\n)+)", text, re.M):
            yield match[1], "function", inspect.cleandoc(match[2])
        for match in re.finditer(r"^(\w[^\n]{3,50})\n[=*\-~^]{4,}\n\n((?:.+\n|\n)+?)(?=\n[^\n]+\n[=*\-~^]{4,}\n|\Z)", text, re.M):
            yield match[1].lower(), "topic", match[2]


def source_docstrings() -> Iterator[tuple[str, str, str]]:
    """(qualified name, kind, docstring) of every module, class and function in the standard library's sources."""
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


def node_docstrings(node: Any, name: str, kind: str) -> Iterator[tuple[str, str, str]]:
    text = ast.get_docstring(node)
    if text:
        yield name, kind, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from node_docstrings(child, f"{name}.{child.name}", "class")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from node_docstrings(child, f"{name}.{child.name}", "function")


def compiled_docstrings() -> Iterator[tuple[str, str, str]]:
    """(qualified name, kind, docstring) of what is written in C, and so has no source to parse."""
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


def object_docstrings(value: object, name: str) -> Iterator[tuple[str, str, str]]:
    """The same of one function or class written in C, with the class's methods."""
    if not (inspect.isbuiltin(value) or inspect.isclass(value)):
        return
    if isinstance(value.__doc__, str):
        yield name, "class" if inspect.isclass(value) else "function", value.__doc__
    members = sorted(vars(value).items()) if inspect.isclass(value) else []
    for member, method in members:
        if inspect.ismethoddescriptor(method) and isinstance(method.__doc__, str):
            yield f"{name}.{member}", "function", method.__doc__


def gather() -> list[Entry]:
    """Every entry once: the same text under a second name teaches nothing but the wrong name."""
    seen: set[str] = set()
    entries = []
    for name, kind, raw in (*topics(), *compiled_docstrings(), *source_docstrings()):
        text = re.sub(r"^[\w.]+\([^\n]*\)(?: ?-+> ?[^\n.]*)?(\n|\.? ?$)", "", clean(raw)).strip()
        key = re.sub(r"\W+", "", text).lower()
        if len(text) < 20 or " " not in text or key in seen:
            continue
        seen.add(key)
        module = name.rpartition(".")[0]
        is_popular = name in POPULAR or module in POPULAR or hasattr(builtins, name.split(".")[0]) or kind == "topic"
        entries.append(Entry(name, kind, text, weight=3 if is_popular else 1))
    return entries


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    es = gather()
    from collections import Counter
    print(len(es), sum(len(e.text) for e in es), Counter(e.kind for e in es), Counter(e.weight for e in es))
    print({k: sum(len(e.text) for e in es if e.kind == k) for k in ("topic","function","class","module")})
    print(sum(len(e.text) for e in es if e.weight==3))
    r = random.Random(1)
    for e in r.sample(es, 25): print("##", e.name, e.kind, e.weight, "\n", e.text[:500])
    for n in ("len","print","str.lower","os.path.join","list","list.append","the for statement","json.dumps","json","re.match","math.sqrt"):
        print([ (e.kind,e.text[:150]) for e in es if e.name==n], n)
    print([e.name for e in es if e.kind=="topic"])
