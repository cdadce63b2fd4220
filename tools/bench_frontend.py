"""CPU time of the frontend process per token, with everything around it faked: no model, no coordinator, no load tool.

One thread plays the coordinator and all the clients in lockstep. A step gives every request one token, in one `Tokens`
message, and the next step comes when every client has its event: so each token is a chunk of its own, as under an
engine that is slower than the frontend, and nothing is cheap because it was merged.

    python tools/bench_frontend.py --streams 1 64 256 --tokens 200

CPU time is that of all threads of the frontend process, user and system, in the kernel's nanoseconds. `request µs` is
what the process spends per request until the coordinator has its `Submit`; `token µs` is everything after that, the
response's end included.
"""

import argparse
import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import zmq

from albireo import sockets
from albireo.config import FrontendConfig, encode_config, process_names
from albireo.engine_args import EngineArgs, plan_engine
from albireo.engine_segments import create_segments
from albireo.listener import ListenAddress
from albireo.messages import (
    Admitted,
    EngineReady,
    Finish,
    Ready,
    Submit,
    Tokens,
    coordinator_decoder,
    encode,
    supervisor_decoder,
)
from albireo.serve import DEMO_MODEL, ServeArgs, child_specs
from albireo.shm.stats import EngineStats

TIMEOUT_S = 30.0
EVENT_END = b"\n\n"


@dataclass(frozen=True)
class Result:
    """One measurement."""

    num_streams: int
    num_requests: int
    streams: bool
    num_tokens: int
    request_s: float
    """CPU seconds until every request was submitted."""
    token_s: float
    """CPU seconds from then on."""
    wall_s: float
    events: int

    def row(self) -> str:
        kind = "stream" if self.streams else "whole"
        return (
            f"{self.num_streams:7d}  {kind:6s}  {self.request_s * 1e6 / self.num_requests:10.0f}  "
            f"{self.token_s * 1e6 / self.num_tokens:8.1f}  {self.num_tokens / self.wall_s:9.0f}  "
            f"{self.events / self.num_tokens:12.2f}"
        )


HEADER = "streams  kind    request µs  token µs   tokens/s  events/token"


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.events = 0
        self.done = False
        self._whole = False
        selector.register(self.socket, selectors.EVENT_READ, self)

    def send(self, request: bytes, streams: bool) -> None:
        self.events, self.done, self._whole = 0, False, not streams
        self.socket.sendall(request)

    def read(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise SystemExit("the frontend closed a connection")
        self.events += data.count(EVENT_END)
        self.done = self.done or (b'"completion_tokens":' in data if self._whole else b"[DONE]" in data)


class Bench:
    """A frontend process, its coordinator and its clients."""

    def __init__(self, port: int, pid: int, link: "zmq.Socket[bytes]") -> None:
        self._pid = pid
        self._port = port
        self._link = link
        self._decoder = coordinator_decoder()
        self._selector = selectors.DefaultSelector()
        self._clients: list[Client] = []
        self._words = plain_tokens()
        self._rng = random.Random(0)
        self._step = 0

    def cpu_s(self) -> float:
        """Time on a CPU of the frontend's threads: utime + stime, which /proc/PID/stat rounds to 10 ms."""
        threads = Path(f"/proc/{self._pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) * 1e-9

    def measure(self, num_streams: int, num_tokens: int, rounds: int, streams: bool) -> Result:
        """`rounds` times `num_streams` requests at once, of `num_tokens` each."""
        while len(self._clients) < num_streams:
            self._clients.append(Client(self._port, self._selector))
        clients = self._clients[:num_streams]
        request_s = token_s = 0.0
        events = 0
        started = time.perf_counter()
        for _ in range(rounds):
            before = self.cpu_s()
            identity, request_ids = self._submit(clients, num_tokens, streams)
            submitted = self.cpu_s()
            for index in range(num_tokens):
                last = index == num_tokens - 1
                self._link.send_multipart([identity, self._tokens(request_ids, index == 0, last)])
                # the last token's event comes together with [DONE]
                self._wait(clients, (index + 1) if streams and not last else 0, done=last)
            request_s += submitted - before
            token_s += self.cpu_s() - submitted
            events += sum(client.events for client in clients)
        wall_s = time.perf_counter() - started
        num_requests = num_streams * rounds
        return Result(num_streams, num_requests, streams, num_requests * num_tokens, request_s, token_s, wall_s, events)

    def _submit(self, clients: Sequence[Client], num_tokens: int, streams: bool) -> tuple[bytes, "list[int]"]:
        """Sends a request on every connection; returns what the coordinator hears: the frontend and its ids."""
        body = {"prompt": list(range(5, 37)), "max_tokens": num_tokens, "stream": streams, "ignore_eos": True}
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        for client in clients:
            client.send(head.encode() + b"\r\n\r\n" + data, streams)
        identity = b""
        request_ids: list[int] = []
        while len(request_ids) < len(clients):
            if not self._link.poll(int(TIMEOUT_S * 1000)):
                raise SystemExit("the frontend submits nothing")
            identity, frame = self._link.recv_multipart()
            message = self._decoder.decode(frame)
            if isinstance(message, Submit):
                request_ids.append(message.request_id)
        return identity, request_ids

    def _tokens(self, request_ids: "list[int]", first: bool, last: bool) -> bytes:
        self._step += 1
        count = len(request_ids)
        token_ids = self._rng.choices(self._words, k=count)
        finish = Finish.LENGTH if last else Finish.NONE
        return encode(
            Tokens(
                step=self._step,
                request_ids=np.array(request_ids, "<u8").tobytes(),
                token_ids=np.array(token_ids, "<i4").tobytes(),
                finish=bytes([finish]) * count,
                admitted=[Admitted(request_id, 0) for request_id in request_ids] if first else [],
            )
        )

    def _wait(self, clients: Sequence[Client], num_events: int, done: bool) -> None:
        """Reads until every client has so many events, or the end."""
        waiting = {client for client in clients if not (client.done if done else client.events >= num_events)}
        while waiting:
            ready = self._selector.select(TIMEOUT_S)
            if not ready:
                raise SystemExit("the frontend does not answer")
            for key, _ in ready:
                client: Client = key.data
                client.read()
                if client.done if done else client.events >= num_events:
                    waiting.discard(client)


def plain_tokens() -> list[int]:
    """Tokens of the bundled model that are text by themselves: each of them is an event."""
    tokenizer = tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    return [id_ for token, id_ in tokenizer.get_vocab().items() if token.isascii() and token.isalnum()]


@contextlib.contextmanager
def running_frontend(run_dir: str, context: "zmq.Context[zmq.Socket[bytes]]") -> Iterator[Bench]:
    """A frontend with the bundled model's tokenizer, ready for requests."""
    control = sockets.open_socket(context, zmq.ROUTER)
    control.bind(sockets.control_address(run_dir))
    link = sockets.open_socket(context, zmq.ROUTER)
    link.setsockopt(zmq.SNDHWM, 0)
    link.bind(sockets.coordinator_address(run_dir))
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    child = _start(run_dir, listener.fileno())
    try:
        decoder = supervisor_decoder()
        name, _ = control.recv_multipart()
        control.send_multipart([name, encode(EngineReady(100_000))])
        while not isinstance(decoder.decode(control.recv_multipart()[1]), Ready):
            pass
        yield Bench(listener.getsockname()[1], child.pid, link)
    finally:
        child.terminate()
        child.communicate()
        listener.close()
        context.destroy(0)


def _start(run_dir: str, socket_fd: int) -> subprocess.Popen[bytes]:
    """As the supervisor does, with the config that `albireo-run serve` makes."""
    plan = plan_engine(EngineArgs(model=str(DEMO_MODEL), kv_cache_bytes=1 << 26), num_cpus=1)
    args = ServeArgs(
        engine=EngineArgs(model=str(DEMO_MODEL)), address=ListenAddress("", 0), served_model_names=(), api_keys=(),
        root_path="",
        access_log=False, shutdown_timeout_s=1.0, worker_timeout_s=30.0, num_frontends=1, max_logprobs=20,
        chat_template=None, generation_config="vllm", log_level="warning",
    )  # fmt: skip
    segments = create_segments(plan.scheduler, 1, process_names(1))
    EngineStats(segments.stats).engine["heartbeat_ns"] = time.monotonic_ns()
    specs = child_specs(args, plan, ("demo",), None, run_dir, [segments], socket_fd)
    spec = next(spec for spec in specs if isinstance(spec.config, FrontendConfig))
    child = subprocess.Popen(
        [sys.executable, "-m", spec.module], stdin=subprocess.PIPE, pass_fds=spec.fds,
        env={**os.environ, **spec.environment},
    )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(encode_config(spec.config))
    child.stdin.flush()
    return child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256], help="requests at once")
    parser.add_argument("--tokens", type=int, default=200, help="per request")
    parser.add_argument("--total", type=int, default=50_000, help="tokens to measure for each number of streams")
    parser.add_argument("--whole", action="store_true", help="also without streaming")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="albireo-bench-") as run_dir,
        running_frontend(run_dir, zmq.Context()) as bench,
    ):
        print(f"{args.tokens} tokens per request")
        print(HEADER)
        bench.measure(8, 50, 1, streams=True)
        for num_streams in args.streams:
            rounds = max(1, args.total // (num_streams * args.tokens))
            for streams in (True, False) if args.whole else (True,):
                print(bench.measure(num_streams, args.tokens, rounds, streams).row(), flush=True)


if __name__ == "__main__":
    main()
