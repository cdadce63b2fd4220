"""What a person sees on stderr while the server starts: a live line per process on a terminal, plain lines else."""

import contextlib
import logging
import sys
import time
from typing import TYPE_CHECKING

from albireo.config import LogFormat
from albireo.logs import journal_prefix, json_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class StartupDisplay:
    """Progress, the one ready line, and errors. `model` is the name that clients use."""

    def __init__(self, model: str, interactive: bool, log_format: LogFormat = "text") -> None:
        self._model = model
        self._log_format = log_format
        self._started = time.monotonic()
        self._stages: dict[str, str] = {}
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if interactive and log_format == "text":
            self._progress = self._open_progress()

    def _open_progress(self) -> "Progress":
        # rich is 0.1 s of imports: only where somebody watches
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
        progress.start()
        return progress

    def progress(self, process: str, stage: str, fraction: float) -> None:
        """A process's stage and how far it is, 0 to 1."""
        if self._progress is not None:
            if process not in self._tasks:
                self._tasks[process] = self._progress.add_task(process, total=1.0)
            self._progress.update(self._tasks[process], completed=fraction, description=f"{process}: {stage}")
        elif self._stages.get(process) != stage:
            self._stages[process] = stage
            self._print(f"{process}: {stage}")

    def ready(self, device: str, capacity_tokens: int, url: str) -> None:
        """The one line that says that requests are served."""
        self.close()
        elapsed = time.monotonic() - self._started
        self._print(
            f"albireo ready: {url}  model {self._model}  device {device}  "
            f"KV cache {capacity_tokens:,} tokens  ({elapsed:.1f} s)",
            url=url,
            model=self._model,
            device=device,
            kv_cache_tokens=capacity_tokens,
        )

    def note(self, message: str) -> None:
        """What is good to know of a server that runs."""
        self.close()
        self._print(f"albireo: {message}")

    def error(self, message: str) -> None:
        self.close()
        self._print(f"albireo: {message}", logging.ERROR)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _print(self, line: str, level: int = logging.INFO, **fields: object) -> None:
        if self._log_format == "json":
            line = json_line("supervisor", level, line, fields, time.time())
        with contextlib.suppress(OSError):  # a terminal that is gone takes no lines
            print(journal_prefix(level) + line, file=sys.stderr, flush=True)
