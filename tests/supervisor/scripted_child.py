"""A process that speaks with the supervisor as a real one does, and does nothing else: `python -m scripted_child`.

ALBIREO_SCRIPT says what befalls those that take another's place: `name=what` with spaces between. What: `stops` (by
SIGSTOP, after its first word), `fails` (when others may be ready), `says-why` (it fails, and why is heard a tenth of a
second later). `coordinator-K=waits` is for the first one too: it always has a request, and plans no step.
"""

import os
import signal
import sys
import time

import msgspec
import zmq

from albireo import child
from albireo.config import ChildConfig, SegmentFds
from albireo.messages import EngineHalted, EngineReady, Progress, Ready, Stop, WorkerReady, WorkersDown
from albireo.shm.flight import FlightRecorder
from albireo.shm.stats import EngineStats

TURN_MS = 50


class Script:
    """One process."""

    def __init__(self, line: bytes) -> None:
        fields = msgspec.json.decode(line)
        names = ("name", "run_dir", "log_level", "incarnation")
        self.config = ChildConfig(**{name: fields[name] for name in names})
        self.role = self.config.name.partition("-")[0]
        self.rank = int(fields.get("rank", 0))
        segments = msgspec.convert(fields["segments"], SegmentFds)
        self.stats = EngineStats(segments.stats)
        self.recorder = FlightRecorder(segments.flight[self.config.name], 0, os.getpid(), time.monotonic_ns)
        fate = dict(each.split("=") for each in os.environ.get("ALBIREO_SCRIPT", "").split())
        self.fate = fate.get(self.config.name, "") if self.config.incarnation else ""

    def run(self) -> None:
        if self.fate == "says-why" and os.fork():
            os._exit(9)
        control = child.Control(zmq.Context(), self.config)
        if self.fate == "says-why":
            time.sleep(0.1)
            control.fatal("these are its last words")
            return
        control.send(Progress("starting", 0.0))
        if self.fate == "stops":
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.fate == "fails":
            time.sleep(0.5)
            os._exit(9)
        if self.role == "worker":
            control.send(WorkerReady(8, "scripted"))
        if self.role == "grammar":
            control.send(Ready())
        while True:
            self.beat()
            match control.wait(TURN_MS):
                case EngineReady():
                    control.send(Ready())
                case WorkersDown():
                    control.send(EngineHalted())
                case Stop():
                    return

    def beat(self) -> None:
        if self.role == "coordinator" and f"{self.config.name}=waits" in os.environ["ALBIREO_SCRIPT"]:
            self.stats.engine["num_waiting"] = 1
        if self.role == "worker":
            self.stats.workers["heartbeat_ns"][self.rank] = time.monotonic_ns()
        else:
            self.recorder.beat()


if __name__ == "__main__":
    Script(sys.stdin.buffer.readline()).run()
