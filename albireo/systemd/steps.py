"""What an installation does, as a list that can be shown or done."""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from albireo.errors import StartupError


class WriteFile(Struct, frozen=True):
    """Replaces a file, or keeps the one that is there."""

    path: Path
    text: str
    mode: int = 0o644
    keeps_existing: bool = False

    def describe(self) -> str:
        kept = ", unless there is one" if self.keeps_existing else ""
        body = "".join(f"    {line}\n" for line in self.text.splitlines())
        return f"write {self.path} (mode {self.mode:04o}{kept})\n{body}".rstrip("\n")

    def perform(self) -> str:
        """What was done. Raises OSError."""
        if self.keeps_existing and self.path.exists():
            return f"kept {self.path}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # a file of its own first: systemd never reads half a unit, nor anybody a secret
        new = self.path.with_name(f".{self.path.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self.mode), "w", encoding="utf-8") as file:
            file.write(self.text)
            os.fchmod(file.fileno(), self.mode)
        new.replace(self.path)
        return f"wrote {self.path}"


class RemoveFile(Struct, frozen=True):
    """Removes a file where there is one."""

    path: Path

    def describe(self) -> str:
        return f"remove {self.path}"

    def perform(self) -> str:
        """What was done. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            return f"removed {self.path}"
        return f"{self.path} is not there"


class Run(Struct, frozen=True):
    """Runs a program of systemd."""

    command: tuple[str, ...]
    may_fail: bool = False
    """As `systemctl disable` does for a unit that is not there."""

    def describe(self) -> str:
        return f"run {shlex.join(self.command)}"

    def perform(self) -> str:
        """What was done. Raises OSError, StartupError."""
        done = subprocess.run(self.command, capture_output=True, text=True, check=False)
        if done.returncode and not self.may_fail:
            reason = (done.stderr or done.stdout).strip().replace("\n", "; ")
            raise StartupError(f"{shlex.join(self.command)} failed: {reason or f'exit code {done.returncode}'}")
        return f"ran {shlex.join(self.command)}"


Step = WriteFile | RemoveFile | Run


def perform(steps: Sequence[Step]) -> None:
    """Does them, a line on stdout for each. Raises StartupError at the first that fails; those before it stay done, and
    the whole can be done again."""
    for step in steps:
        try:
            print(step.perform(), flush=True)
        except PermissionError as error:
            raise StartupError(
                f"cannot {step.describe().splitlines()[0]}: {error.strerror}; run it as root (--dry-run and --root DIR "
                "need no root)"
            ) from error
        except OSError as error:
            raise StartupError(f"cannot {step.describe().splitlines()[0]}: {error.strerror}") from error
