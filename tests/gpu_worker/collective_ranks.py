"""Groups of rank processes that carry out collectives for tests, all forked off one process that has imported torch.

usage: collective_ranks.py STATS_FD GROUPS_JSON, started by `Ranks`. A rank reads programs, one JSON line each, from
its socket and answers each with one line; it ends with its socket, and is killed with its parent.
"""

import ctypes
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from albireo.gpu_worker.collectives import shm_kernels
from albireo.gpu_worker.collectives.gloo import TorchCollectives
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.collectives.shm import ShmCollectives
from albireo.shm import segment, stats
from albireo.shm.collective_segment import CollectiveSegment
from albireo.shm.stats import EngineStats

BUFFER_BYTES = 8192
SHARED_BYTES = 3000
"""Small, so that small operations take pieces and the two-barrier sum."""
Operation = dict[str, Any]


def make_input(operation: Operation, rank: int, size: int) -> tuple[Tensor, Tensor]:
    """What `rank` brings to an operation, and the residual, which is the same for all."""
    count = operation["count"] * (size if operation["kind"] == "all_to_all" else 1)
    dtype = getattr(torch, operation["dtype"])
    values = []
    for seed in (operation["seed"] + 1 + rank, operation["seed"]):
        generator = torch.Generator().manual_seed(seed)
        if operation["whole"]:
            values.append(torch.randint(-8, 9, (count,), generator=generator).to(dtype))
        else:
            values.append((torch.randn(count, generator=generator) * 100).to(dtype))
    if operation["kind"] == "all_to_all":
        return values[0].view(size, operation["count"]), values[1]
    return values[0], values[1]


def carry_out(group: Collectives, operation: Operation) -> Tensor:
    given, residual = make_input(operation, group.rank, group.size)
    if operation["kind"] == "all_reduce":
        return group.all_reduce(given, residual if operation["residual"] else None)
    return group.all_gather(given) if operation["kind"] == "all_gather" else group.all_to_all(given)


def expected(operation: Operation, rank: int, size: int) -> Tensor:
    """The result by plain torch calls; sums in float32, in the order of the ranks."""
    inputs = [make_input(operation, other, size) for other in range(size)]
    if operation["kind"] == "all_gather":
        return torch.stack([given for given, _ in inputs])
    if operation["kind"] == "all_to_all":
        return torch.stack([given[rank] for given, _ in inputs])
    total = inputs[0][0].float()
    for given, _ in inputs[1:]:
        total = total + given.float()
    if operation["residual"]:
        total = total + inputs[0][1].float()
    return total.to(inputs[0][0].dtype)


def differences(operation: Operation, mine: Tensor, reference: Tensor, rank: int, size: int) -> list[str]:
    """What is wrong with a result, in words."""
    wrong = []
    if not torch.equal(mine, expected(operation, rank, size)):
        wrong.append(f"{operation}: not what plain torch calls give")
    if operation["kind"] == "all_reduce" and not operation["whole"]:
        rounding = 2.0**-8 if mine.dtype == torch.bfloat16 else 1e-5
        if not torch.allclose(mine.float(), reference.float(), rtol=rounding, atol=1e-3):
            wrong.append(f"{operation}: further from gloo than a rounding")
    elif not torch.equal(mine, reference):
        wrong.append(f"{operation}: not what gloo gives")
    return wrong


def run_program(program: dict[str, Any], group: ShmCollectives, reference: Collectives | None) -> dict[str, Any]:
    delays = random.Random(program["delay_seed"] + group.rank)
    operations = program["operations"]
    results = []
    for operation in operations:
        time.sleep(delays.choice([0, 0, 0.0005, 0.002]) if program["delayed"] else 0)
        results.append(carry_out(group, operation))
    wrong = []
    # after all of them: a result has to stay what it was while later operations run
    if reference is not None:
        for operation, mine in zip(operations, results, strict=True):
            wrong += differences(operation, mine, carry_out(reference, operation), group.rank, group.size)
        if group.received_bytes != reference.received_bytes:
            wrong.append(f"{group.received_bytes} bytes counted, {reference.received_bytes} by gloo")
    sums = [mine for operation, mine in zip(operations, results, strict=True) if operation["kind"] == "all_reduce"]
    digest = hashlib.sha256(b"".join(mine.view(torch.uint8).numpy().tobytes() for mine in sums)).hexdigest()
    return {"wrong": wrong, "digest": digest, "received_bytes": group.received_bytes}


def run_rank(connection: socket.socket, stats_fd: int, row: int, rank: int, group_spec: dict[str, Any]) -> None:
    heartbeat = EngineStats(stats_fd).workers[row : row + 1]
    size = group_spec["size"]
    group = ShmCollectives(
        group_spec["fd"], rank, size, heartbeat, time.monotonic_ns, group_spec["spin_rounds"], SHARED_BYTES
    )
    reference = None
    with connection.makefile("rw") as lines:
        for line in lines:
            program = json.loads(line)
            if program["gloo_file"] and reference is None:
                gloo_file = Path(program["gloo_file"])
                reference = TorchCollectives("gloo", gloo_file, rank, size, heartbeat.copy(), time.monotonic_ns)
            try:
                answer = {} if program["close"] else run_program(program, group, reference)
                if program["close"]:
                    group.close()
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    """Forks every rank, prints their process ids, and waits for them."""
    die_with_parent()
    torch.set_num_threads(1)
    # once, here: ranks that each compile for themselves, on few cores, look like ranks that hang
    shm_kernels.move_kernel()
    for element in (np.uint16, np.float32):
        shm_kernels.sum_kernel(element)
    stats_fd, groups = int(sys.argv[1]), json.loads(sys.argv[2])
    row, pids = 0, []
    for group in groups:
        for rank, fd in enumerate(group["sockets"]):
            pid = os.fork()
            if pid == 0:
                die_with_parent()
                for other in (other for each in groups for other in each["sockets"] if other != fd):
                    os.close(other)
                run_rank(socket.socket(fileno=fd), stats_fd, row, rank, group)
                os._exit(0)
            pids.append(pid)
            row += 1
    for fd in (fd for group in groups for fd in group["sockets"]):
        os.close(fd)
    print(*pids, flush=True)
    for pid in pids:
        os.waitpid(pid, 0)


class Group:
    """The test's end of one group: process ids, sockets, and `heartbeats` (WORKER_HEARTBEAT [size])."""

    def __init__(self, size: int, spin_rounds: int) -> None:
        self.size = size
        self.spin_rounds = spin_rounds
        geometry = CollectiveSegment(size, BUFFER_BYTES)
        self.fd = segment.create("collectives", geometry.size)
        geometry.initialise(self.fd)
        pairs = [socket.socketpair() for _ in range(size)]
        self.connections, self.remote = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.lines = [connection.makefile("rw") for connection in self.connections]
        self.pids: list[int] = []
        self.heartbeats: Any = None

    def send(self, rank: int, operations: list[Operation], **settings: Any) -> None:
        program = {"operations": operations, "delayed": False, "delay_seed": 0, "gloo_file": "", "close": False}
        self.connections[rank].settimeout(60)
        self.lines[rank].write(json.dumps(program | settings) + "\n")
        self.lines[rank].flush()

    def receive(self, rank: int) -> dict[str, Any]:
        return json.loads(self.lines[rank].readline())  # type: ignore[no-any-return]

    def run(self, operations: list[Operation], **settings: Any) -> list[dict[str, Any]]:
        """One program on all ranks; their answers."""
        for rank in range(self.size):
            self.send(rank, operations, **settings)
        return [self.receive(rank) for rank in range(self.size)]


class Ranks:
    """All processes of a test module. To be closed; nothing outlives it."""

    def __init__(self, groups: dict[str, Group]) -> None:
        self.groups = groups
        total = sum(group.size for group in groups.values())
        self._stats_fd = segment.create("stats", stats.stats_bytes(total))
        stats.initialise(self._stats_fd, total)
        specs = [
            {
                "size": group.size, "fd": group.fd, "spin_rounds": group.spin_rounds,
                "sockets": [remote.fileno() for remote in group.remote],
            }
            for group in groups.values()
        ]  # fmt: skip
        fds = [self._stats_fd, *(group.fd for group in groups.values())]
        fds += [fd for spec in specs for fd in spec["sockets"]]  # type: ignore[attr-defined]
        command = [sys.executable, __file__, str(self._stats_fd), json.dumps(specs)]
        self._process = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        pids = [int(pid) for pid in self._process.stdout.readline().split()]
        assert len(pids) == total, "the ranks did not start"
        workers, first = EngineStats(self._stats_fd).workers, 0
        for group in groups.values():
            group.pids, group.heartbeats = pids[first : first + group.size], workers[first : first + group.size]
            first += group.size
            for remote in group.remote:
                remote.close()

    def close(self) -> None:
        self._process.kill()  # the ranks go with it
        self._process.communicate()
        for group in self.groups.values():
            for lines, connection in zip(group.lines, group.connections, strict=True):
                lines.close()
                connection.close()
            os.close(group.fd)
        os.close(self._stats_fd)


if __name__ == "__main__":
    main()
