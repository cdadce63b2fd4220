"""How an engine that runs, or ran, is found by other commands: a file in its run directory, flight records it left.

A leaf. The file names the supervisor's process and the descriptors of its segments; who may read that process's
memory (the same user, or root) can open them through /proc.
"""

import os
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from albireo import config
from albireo.shm import flight
from albireo.shm.segment import SegmentError

_NAME = "engine.json"
MAX_FLIGHT_RECORDS = 5
"""Files that crashes leave: a server that is restarted again and again must not fill the disk."""


class EngineInfo(Struct, frozen=True, forbid_unknown_fields=True):
    """A running engine."""

    pid: int
    """The supervisor's."""
    version: str
    model_name: str
    host: str
    port: int
    url: str
    """Where it listens; of a Unix socket `http+unix:PATH`."""
    flight_fds: dict[str, int]
    """By process name: the supervisor's descriptor of its flight segment."""

    def read_flight(self) -> list[flight.FlightLog]:
        """Every process's records. Raises SegmentError, as `flight_readers`."""
        return [reader.read() for reader in self.flight_readers()]

    def flight_readers(self) -> list[flight.FlightReader]:
        """For whoever reads again and again; they stay good when the engine ends. Raises SegmentError when the engine
        is gone, of another version or another user's."""
        readers = []
        for name, number in self.flight_fds.items():
            path = f"/proc/{self.pid}/fd/{number}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise SegmentError(f"cannot read {name} of the engine with pid {self.pid}: {error.strerror}") from error
            try:
                readers.append(flight.FlightReader(fd))
            finally:
                os.close(fd)
        return readers


def write_engine_file(run_dir: str, info: EngineInfo) -> None:
    """Makes the engine known; the file goes with the run directory."""
    (Path(run_dir) / _NAME).write_bytes(msgspec.json.encode(info))


def find_engines() -> list[EngineInfo]:
    """Engines that run on this machine and whose run directory this user may read."""
    engines = []
    parents = {config.runtime_parent_dir(), config.SERVICE_RUNTIME_DIR}
    for path in sorted(path for parent in parents for path in Path(parent).glob(f"albireo-*/{_NAME}")):
        try:
            info = msgspec.json.decode(path.read_bytes(), type=EngineInfo)
        except (OSError, msgspec.MsgspecError):
            continue  # another user's, another version's, or just gone
        if Path(f"/proc/{info.pid}").exists():
            engines.append(info)
    return engines


def leave_flight_record(fds: dict[str, int], replica: int = 0) -> str:
    """Saves what every process of a replica did last, after a crash; returns the file's path. Of this user's older ones
    the newest stay. Raises OSError; FileExistsError where this replica left one in the same second."""
    folder = Path(config.flight_record_dir())
    mine = [path for path in folder.glob("albireo-flight-*.npz") if path.lstat().st_uid == os.getuid()]
    for path in sorted(mine)[: 1 - MAX_FLIGHT_RECORDS]:
        path.unlink(missing_ok=True)
    path = folder / f"albireo-flight-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{replica}.npz"
    flight.dump(str(path), [flight.FlightReader(fd).read() for fd in fds.values()])
    return str(path)
