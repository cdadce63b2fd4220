"""The text: what the standard library says of itself, as entries of clean prose."""

import ast
import builtins
import importlib
import inspect
import pydoc
import pydoc_data.topics
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
