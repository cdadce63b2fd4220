"""The record as a file, and back: a report can be made again without measuring."""

import os
from pathlib import Path

import msgspec

from albireo.bench.report import save_result
from albireo.bench.settings import SettingsError
from albireo.tune.figures import FORMAT, TuneRecord


def check_file(path: Path, flag: str) -> None:
    """Before a run of hours is lost. Raises SettingsError for a file that could not be written."""
    folder = next(each for each in path.absolute().parents if each.exists())
    place = path if path.exists() else folder
    if path.is_dir() or not folder.is_dir() or not os.access(place, os.W_OK):
        raise SettingsError(f"{flag} {path} cannot be written")


def save(path: Path, record: TuneRecord) -> None:
    """Raises OSError."""
    save_result(path, msgspec.to_builtins(record, str_keys=True))


class _Format(msgspec.Struct):
    """What every version's files have."""

    format: int


def load(path: Path) -> TuneRecord:
    """Raises SettingsError for a file that is none, or of another version."""
    try:
        data = path.read_bytes()
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise SettingsError(f"--from {path} is of format {found}, and this version reads {FORMAT}")
        return msgspec.json.decode(data, type=TuneRecord)
    except OSError as error:
        raise SettingsError(f"cannot read --from {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"--from {path} was not saved by `albireo-run tune`: {error}") from None
