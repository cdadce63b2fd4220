"""Requests that no client should send, by class: each from a seeded generator, so that any of them can be sent again.

A class is a function that makes an `Attack` of a `random.Random`. `ATTACKS` holds them by name.
"""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from malformed_bodies import BODIES, BODY_FAULTS, faulty_body

HOST = b"Host: albireo\r\n"
JSON = b"Content-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"


class Ending(Enum):
    """What the client does when all is sent."""

    READ = "reads until the server closes"
    GLANCE = "waits a moment and leaves: the server has every right to wait for more"
    HALF_CLOSE = "shuts its sending side and reads"
    RESET = "reads a little and resets the connection"
    LEAVE = "closes at once"


@dataclass(frozen=True)
class Attack:
    """One connection's story."""

    pieces: tuple[bytes, ...]
    ending: Ending = Ending.READ
    pause_s: float = 0.0
    """Between pieces."""
    must_answer: bool = True
    """Whether silence, or a close without a status, would be a fault of the server."""
    reset_after_bytes: int = 0
    """Of the answer."""
    is_right: bool = False
    """It must be answered with 200."""


def post(path: str, body: bytes, headers: bytes = JSON + CLOSE, length: bytes | None = None) -> bytes:
    """A whole POST; `length` is what it says of its body."""
    said = b"%d" % len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %b\r\n\r\n%b" % (path.encode(), HOST, headers, said, body)


def good_request(rng: random.Random) -> tuple[str, bytes]:
    """A path and a body that are right."""
    path, body = rng.choice(BODIES)
    return path, json.dumps(body).encode()


def stream_request(rng: random.Random) -> bytes:
    """A right request for a stream of some length."""
    max_tokens = rng.choice([20, 60, 120])
    body = {"prompt": "Once upon a time", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    return post("/v1/completions", json.dumps(body).encode(), JSON)


def body_attack(fault: str) -> Callable[[random.Random], Attack]:
    def make(rng: random.Random) -> Attack:
        path, body = faulty_body(fault, rng)
        return Attack((post(path, body),))

    return make


def length_too_short(rng: random.Random) -> Attack:
    path, body = good_request(rng)
    return Attack((post(path, body, length=b"%d" % rng.randrange(len(body))),))


def length_too_long(rng: random.Random) -> Attack:
    path, body = good_request(rng)
    said = len(body) + rng.choice([1, 100, 8_000_000])
    return Attack((post(path, body, length=b"%d" % said),), rng.choice([Ending.GLANCE, Ending.HALF_CLOSE]),
                  must_answer=False)  # fmt: skip


def length_absurd(rng: random.Random) -> Attack:
    path, body = good_request(rng)
    length = rng.choice([
        b"-1", b"+5", b"1e3", b"0x10", b"", b" ", b"5,5", b"9" * 40, b"8388609", b"18446744073709551617",
        b"5\r\nContent-Length: 6", b"4\r\nTransfer-Encoding: chunked", b"\xff", b"1_0",
    ])  # fmt: skip
    return Attack((post(path, body, length=length),), Ending.GLANCE, must_answer=False)


def chunk_faults(rng: random.Random) -> Attack:
    path, body = good_request(rng)
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    frame = rng.choice([
        b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n", b"ffffffffffffffffff\r\n{}", b"7fffffff\r\n{}", b"2\r\n{}0\r\n\r\n",
        b"2{}\r\n0\r\n\r\n", b"\r\n\r\n", b"2;" + b"x" * 70_000 + b"\r\n{}\r\n0\r\n\r\n", whole[:-7],
        whole[: len(whole) // 2], whole[:-2] + b"X-Trailer: \x00\r\n\r\n", whole[:-2] + b"X-T: y\r\n" * 9000,
        b"1\r\n{\r\n" * 300, b"0\r\n\r\n", whole * 2,
    ])  # fmt: skip
    encoding = rng.choice(
        [b"chunked", b"chunked", b"chunked", b"gzip, chunked", b"chunked, gzip", b"CHUNKED", b"xchunked"]
    )
    head = b"POST %b HTTP/1.1\r\n%b%bTransfer-Encoding: %b\r\n\r\n" % (path.encode(), HOST, JSON, encoding)
    return Attack((head, frame), rng.choice([Ending.GLANCE, Ending.HALF_CLOSE]), must_answer=False)


def bad_method(rng: random.Random) -> Attack:
    method = rng.choice([
        b"get", b"BREW", b"TRACE", b"CONNECT", b"DELETE", b"PUT", b"PATCH", b"OPTIONS", b"PRI", b"\xff", b"",
        b"M-SEARCH", b"G ET", b"X" * 5000, b"SOURCE", b"HEAD",
    ])  # fmt: skip
    path = rng.choice([b"/v1/completions", b"/health", b"/metrics", b"*", b"x:443"])
    return Attack((method + b" " + path + b" HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",))


def bad_path(rng: random.Random) -> Attack:
    path = rng.choice([
        b"", b"*", b"v1/completions", b"//v1/completions", b"/v1/../etc/passwd", b"/%00", b"/%ff%fe", b"/%", b"/%zz",
        b"/\xff\xfe", b"/" + b"a" * 60_000, b"/v1/models/" + b"%2f" * 3000, b"/v1/models/" + b"%F0%9F%92%A9" * 50,
        b"http://[::1", b"http://:99999/", b"/v1/completions?" + b"&" * 20_000, b"/v1/models/\x7f", b"/a b", b"/#x",
        b"/?\xc3\x28", b"/v1/models/%ed%a0%80", b"http://a/health", b"/v1/models/%0d%0aX-Injected:%201", b"\\\\x",
        b"/health/" + b"../" * 1000, b"/v1/models/%1b[31m",
    ])  # fmt: skip
    return Attack((b"GET " + path + b" HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",))


def bad_version(rng: random.Random) -> Attack:
    version = rng.choice(
        [b"HTTP/9.9", b"HTTP/1", b"HTTP/1.1.1", b"http/1.1", b"HTTP/2.0", b"HTTP/0.9", b"ICE/1.0", b"HTTP/1.1 x", b"X"]
    )
    return Attack((b"GET /health " + version + b"\r\n" + HOST + CLOSE + b"\r\n",), Ending.GLANCE, must_answer=False)


def huge_header(rng: random.Random) -> Attack:
    size = rng.choice([60_000, 65_536, 70_000, 200_000])
    name, value = rng.choice([(b"X" * size, b"y"), (b"X-Long", b"y" * size), (b"Cookie", b"\xff" * size)])
    return Attack((b"GET /health HTTP/1.1\r\n" + HOST + CLOSE + name + b": " + value + b"\r\n\r\n",), must_answer=False)


def many_headers(rng: random.Random) -> Attack:
    lines = b"".join(b"X-%d: %d\r\n" % (rng.randrange(99), index) for index in range(rng.choice([200, 2000, 9000])))
    return Attack((b"GET /health HTTP/1.1\r\n" + HOST + CLOSE + lines + b"\r\n",), must_answer=False)


def odd_header(rng: random.Random) -> Attack:
    path, body = good_request(rng)
    line = rng.choice([
        b"no colon\r\n", b": empty name\r\n", b"X-Nul: a\x00b\r\n", b"X-Fold: a\r\n b\r\n", b"X-Lf: a\n",
        b"X-Cr: a\rb\r\n", b"X Space: a\r\n", b"X-Space : a\r\n", b"Expect: 100-continue\r\n", b"Expect: 200-ok\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        b"Connection: " + b"close," * 3000 + b"\r\n", b"Host: other\r\n", b"Authorization: Bearer \xff\xfe\r\n",
        b"X-Request-Id: \x1b[31m\r\n", b"Origin: \xff\r\n", b"Content-Encoding: gzip\r\n",
        b"Content-Type: multipart/form-data; boundary=x\r\n", b"Accept: \x80\r\n", b"\x00\r\n", b"X-\xe9: y\r\n",
        b"Range: bytes=0-\r\n",
    ])  # fmt: skip
    type_ = rng.choice([
        JSON, JSON, b"", b"Content-Type: text/plain\r\n", b"Content-Type: \xff\r\n",
        b"Content-Type: application/json" + b";" * 999 + b"\r\n",
    ])  # fmt: skip
    return Attack((post(path, body, type_ + line + CLOSE),), must_answer=False)


def other_protocol(rng: random.Random) -> Attack:
    data = rng.choice([
        b"GET /\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"SSH-2.0-OpenSSH_9.9\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        b"\x05\x01\x00", b"*1\r\n$4\r\nPING\r\n", b"EHLO x\r\n", b"\x00" * 300, b"\r\n" * 200,
        rng.randbytes(rng.randrange(1, 3000)),
    ])  # fmt: skip
    return Attack((data,), Ending.GLANCE, must_answer=False)


def pipelined(rng: random.Random) -> Attack:
    good = [post(*good_request(rng), JSON), b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", stream_request(rng)]
    requests = rng.choices(good, k=rng.randrange(2, 6))
    bad = rng.choice([b"GARBAGE\r\n\r\n", b"GET / HTTP/7.7\r\n\r\n", b"\x00\x01", b"POST /"])
    requests.insert(rng.randrange(len(requests) + 1), bad)
    return Attack((b"".join(requests),), Ending.HALF_CLOSE if rng.random() < 0.2 else Ending.GLANCE, must_answer=False)


def half_closed(rng: random.Random) -> Attack:
    whole = rng.choice([post(*good_request(rng)), stream_request(rng)])
    cut = rng.choice([0, rng.randrange(len(whole)), whole.index(b"\r\n\r\n") + 4, len(whole)])
    return Attack((whole[:cut],), Ending.HALF_CLOSE, must_answer=False)


def reset(rng: random.Random) -> Attack:
    whole = stream_request(rng)
    cut = len(whole) if rng.random() < 0.8 else rng.randrange(len(whole))
    return Attack((whole[:cut],), Ending.RESET, must_answer=False, reset_after_bytes=rng.randrange(1, 5000))


def leaves(rng: random.Random) -> Attack:
    whole = rng.choice([post(*good_request(rng)), stream_request(rng), b""])
    return Attack((whole,) if whole else (), Ending.LEAVE, must_answer=False)


def split(rng: random.Random) -> Attack:
    """A right request, in pieces that are cut anywhere."""
    whole = post(*good_request(rng))
    cuts = sorted({0, len(whole), *(rng.randrange(len(whole)) for _ in range(6))})
    return Attack(tuple(whole[a:b] for a, b in itertools.pairwise(cuts)), pause_s=0.01,
                  is_right=True)  # fmt: skip


def flipped(rng: random.Random) -> Attack:
    """Some bits of a right request, head included, are flipped."""
    data = bytearray(post(*good_request(rng)))
    for _ in range(rng.randrange(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return Attack((bytes(data),), Ending.GLANCE, must_answer=False)


ATTACKS: dict[str, Callable[[random.Random], Attack]] = {
    **{f"body: {fault}": body_attack(fault) for fault in BODY_FAULTS},
    "length too short": length_too_short,
    "length too long": length_too_long,
    "length absurd": length_absurd,
    "chunk faults": chunk_faults,
    "bad method": bad_method,
    "bad path": bad_path,
    "bad version": bad_version,
    "huge header": huge_header,
    "many headers": many_headers,
    "odd header": odd_header,
    "other protocol": other_protocol,
    "pipelined": pipelined,
    "half-closed": half_closed,
    "reset": reset,
    "leaves": leaves,
    "split": split,
    "bits flipped": flipped,
}


def attack(seed: int, index: int) -> tuple[str, Attack]:
    """The class and the story of one of them: the same for the same two numbers."""
    rng = random.Random(f"{seed}-{index}")
    name = rng.choice(list(ATTACKS))
    return name, ATTACKS[name](rng)
