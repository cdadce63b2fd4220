"""JSON bodies with one thing wrong, for every route that reads one."""

import json
import random
from collections.abc import Callable
from typing import Any

BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0, "seed": 1, "stop": ["x"],
                         "logit_bias": {"7": 1.5}, "stream": False}),
    ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 3, "stream": True, "logprobs": 2, "top_p": 0.9,
                         "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0.5,
                              "response_format": {"type": "text"}}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": "Be brief."},
                                           {"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
                              "max_tokens": 3, "tool_choice": "auto", "tools": [
                                  {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
    ("/v1/messages", {"model": "albireo-demo", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}],
                      "system": "Be brief."}),
    ("/v1/messages/count_tokens", {"model": "albireo-demo", "messages": [{"role": "user", "content": "Hello"}]}),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 16, "temperature": 0}),
    ("/tokenize", {"prompt": "Once upon a time"}),
    ("/detokenize", {"tokens": [5, 6, 7]}),
)  # fmt: skip

ODD_VALUES = (
    "null", "true", "false", "0", "-1", "1", "1.5", '""', '"x"', "[]", "{}", "[[]]", "[null]", '{"":{}}',
    "[1,\"a\",[]]", '{"type":"json_schema"}', '{"type":"object","properties":{"a":{"$ref":"#"}}}',
    '{"regex":"(a+)+{999}"}', '{"json":{"type":"string","pattern":"(x+x+)+y"}}', '{"grammar":"root ::= root root"}',
    '{"choice":[]}',
)  # fmt: skip
ODD_NUMBERS = (
    "1e999", "-1e999", "1e308", "-1e-400", str(2**31), str(2**63), str(-(2**63) - 1), str(2**64), str(2**70), "NaN",
    "Infinity", "-Infinity", "-0", "1" * 400, "1." + "0" * 400, "0x10", "01", "1e", ".5", "1_000", "--1",
)  # fmt: skip
SURROGATES = (
    '"\\ud800"', '"\\udfff\\ud800"', '"a\\udc00b"', '"\\uD83D"', '"\\u0000"', '"\\uffff"', '"\\ud83d\\ude00"',
    '"\\u12"',
)  # fmt: skip
FIELDS = (
    "n", "best_of", "echo", "suffix", "user", "priority", "cache_salt", "bad_words", "stop_token_ids", "min_tokens",
    "top_k", "min_p", "prompt_logprobs", "structured_outputs", "response_format", "tools", "tool_choice", "metadata",
    "logprobs", "top_logprobs", "repetition_penalty", "frequency_penalty", "logit_bias", "chat_template_kwargs",
    "add_generation_prompt", "continue_final_message", "return_token_ids", "reasoning", "thinking", "text",
    "instructions", "stop_sequences", "store", "previous_response_id", "include", "truncation", "stream", "stop",
    "allowed_token_ids", "documents", "__proto__", "",
)  # fmt: skip
_MARK = "@@changed@@"


def faulty_body(fault: str, rng: random.Random) -> tuple[str, bytes]:
    """A path and a body with that fault."""
    path, body = rng.choice(BODIES)
    return path, BODY_FAULTS[fault](json.loads(json.dumps(body)), rng)


def _with(body: dict[str, Any], rng: random.Random, text: str) -> bytes:
    """The body with some value of it, at any depth, replaced by this JSON text."""
    node: Any = body
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        node[key] = _MARK
        return json.dumps(body).replace(f'"{_MARK}"', text).encode("utf-8", "surrogatepass")


def _added(body: dict[str, Any], rng: random.Random) -> bytes:
    body[rng.choice(FIELDS)] = _MARK
    return json.dumps(body).replace(f'"{_MARK}"', rng.choice(ODD_VALUES + ODD_NUMBERS + SURROGATES)).encode()


def _nested(body: dict[str, Any], rng: random.Random) -> bytes:
    depth = rng.choice([40, 65, 1000, 100_000])
    text = rng.choice(["[" * depth + "]" * depth, "[" * depth, '{"a":' * depth + "1" + "}" * depth, '[{"a":' * depth])
    return _with(body, rng, text)


def _long(body: dict[str, Any], rng: random.Random) -> bytes:
    size = rng.choice([300, 5000, 70_000, 300_000])
    unit = rng.choice(["x", " ", "é", "\\n", "💩", "<|im_end|>", "a b "])
    return _with(body, rng, '"' + unit * (size // len(unit)) + '"')


def _many(body: dict[str, Any], rng: random.Random) -> bytes:
    count = rng.choice([200, 2000, 60_000])
    unit = rng.choice(["1", '"a"', "[]", "{}", "null", '{"role":"user","content":"x"}', "[1]"])
    return _with(body, rng, "[" + ",".join([unit] * (count // (1 + len(unit) // 4))) + "]")


def _twice(body: dict[str, Any], rng: random.Random) -> bytes:
    key = rng.choice(list(body))
    again = "".join(f"\\u{ord(char):04x}" for char in key) if rng.random() < 0.3 else key
    return (json.dumps(body)[:-1] + f', "{again}": {json.dumps(body[key])}' + "}").encode()


def _truncated(body: dict[str, Any], rng: random.Random) -> bytes:
    data = json.dumps(body).encode()
    return data[: rng.randrange(len(data))]


def _flipped(body: dict[str, Any], rng: random.Random) -> bytes:
    data = bytearray(json.dumps(body).encode())
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _other(body: dict[str, Any], rng: random.Random) -> bytes:
    whole = json.dumps(body)
    return rng.choice([
        b"", b" ", b"null", b"[]", b'"x"', b"1", b"{", b"}", b"\xef\xbb\xbf" + whole.encode(), whole.encode("utf-16"),
        whole.encode("utf-32"), whole.encode() + b"x", whole.encode() * 2, rng.randbytes(rng.randrange(1, 4000)),
        b"\x00" * 100, whole.replace('"', "'").encode(), whole.replace(":", "").encode(), b'{"prompt":"\xff\xfe"}',
        b"prompt=x&max_tokens=1",
    ])  # fmt: skip


BODY_FAULTS: dict[str, Callable[[dict[str, Any], random.Random], bytes]] = {
    "wrong type": lambda body, rng: _with(body, rng, rng.choice(ODD_VALUES)),
    "odd number": lambda body, rng: _with(body, rng, rng.choice(ODD_NUMBERS)),
    "added field": _added,
    "surrogates": lambda body, rng: _with(body, rng, rng.choice(SURROGATES)),
    "nested": _nested,
    "long string": _long,
    "many values": _many,
    "key twice": _twice,
    "truncated": _truncated,
    "bits flipped": _flipped,
    "no such JSON": _other,
}
