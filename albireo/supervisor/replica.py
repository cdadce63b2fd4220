"""One replica as the supervisor holds it: a coordinator, its workers, its grammar process, and what they share."""

from albireo.config import WorkerConfig
from albireo.supervisor.child_process import Child
from albireo.supervisor.deaths import Deaths
from albireo.supervisor.engine_memory import EngineMemory
from albireo.supervisor.processes import OfReplica


class Replica:
    def __init__(self, processes: OfReplica, memory: EngineMemory, deaths: Deaths) -> None:
        self.processes = processes
        self.memory = memory
        self.deaths = deaths
        self.num_kv_blocks = 0
        """As the coordinator knows it."""

    @property
    def coordinator(self) -> Child | None:
        return self.processes.coordinator

    @property
    def workers(self) -> list[Child]:
        return self.processes.all(WorkerConfig)

    @property
    def has_workers(self) -> bool:
        """All of them, and they are ready."""
        workers = self.workers
        to_come = self.deaths.awaits_halt or self.processes.are_to_come(WorkerConfig)
        return bool(workers) and not to_come and all(worker.is_ready for worker in workers)
