"""What may change while the server runs: API keys and log level, from flags, the environment and --env-file.

The file's lines are `KEY=value`, as docker and systemd read them. Its variables stand in for the environment's of the
same name. That matters under systemd: EnvironmentFile= has put the file's first keys into the environment, where they
would outlive every change of the file.
"""

from pathlib import Path

from msgspec import Struct

from albireo.config import DEFAULT_LOG_LEVEL, LOG_LEVELS, LogLevel, split_keys

KEYS_VARIABLE = "ALBIREO_API_KEY"
LEVEL_VARIABLE = "ALBIREO_LOG_LEVEL"


class EnvFileError(Exception):
    """The file cannot be read, or has a line that makes no sense. One line, without the file's text: it has keys."""


class Settings(Struct, frozen=True):
    """In force."""

    api_keys: tuple[str, ...] = ()
    """Empty: no authentication."""
    log_level: LogLevel = DEFAULT_LOG_LEVEL


class LiveSettings:
    """The settings in force, and where they come from. Used by the supervisor's main thread."""

    def __init__(
        self,
        path: Path | None = None,
        flag_keys: tuple[str, ...] = (),
        environment_keys: tuple[str, ...] = (),
        flag_level: LogLevel | None = None,
        environment_level: LogLevel | None = None,
    ) -> None:
        """`path`: of --env-file. Raises EnvFileError."""
        self.path = path
        self._flag_keys = flag_keys
        self._environment_keys = environment_keys
        self._flag_level = flag_level
        self._environment_level = environment_level
        self._file_keys: tuple[str, ...] = ()
        self.current = Settings()
        self.reload()

    def reload(self) -> None:
        """Reads the file again. Raises EnvFileError, and then everything stays as it is."""
        variables = {} if self.path is None else read_env_file(self.path)
        keys = split_keys(variables.get(KEYS_VARIABLE, ""))
        if self._file_keys and not keys and not self._flag_keys:
            raise EnvFileError(f"{self.path} has no {KEYS_VARIABLE} any more: the server would stand open")
        level = self._flag_level or _level(variables, self.path) or self._environment_level or DEFAULT_LOG_LEVEL
        self._file_keys = keys
        self.current = Settings(self._flag_keys + keys or self._environment_keys, level)


def read_env_file(path: Path) -> dict[str, str]:
    """Variables by name; the last of a name counts. Raises EnvFileError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EnvFileError(f"cannot read --env-file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise EnvFileError(f"cannot read --env-file {path}: it is not UTF-8") from None
    variables = {}
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line[0] in "#;":
            continue
        name, equals, value = line.partition("=")
        if not equals:  # it may be a key without its name: to pass over it could open the server
            raise EnvFileError(f"--env-file {path}: line {number} is not KEY=value")
        variables[name.strip()] = _unquoted(value.strip())
    return variables


def _unquoted(value: str) -> str:
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if is_quoted else value


def _level(variables: dict[str, str], path: Path | None) -> LogLevel | None:
    name = variables.get(LEVEL_VARIABLE, "").lower()
    found = next((level for level in LOG_LEVELS if level == name), None)
    if name and found is None:
        raise EnvFileError(f"--env-file {path}: {LEVEL_VARIABLE} must be one of {', '.join(LOG_LEVELS)}")
    return found
