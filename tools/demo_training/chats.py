"""What the model sees: questions about the entries with their answers, and the entries as plain text."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from demo_training.corpus import Entry, is_private
from demo_training.tokenizer import END_OF_TEXT, IM_END, IM_START

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
