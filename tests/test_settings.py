"""What --env-file may hold, what wins, and what a reload refuses."""

from pathlib import Path

import pytest

from albireo.settings import EnvFileError, LiveSettings, Settings, read_env_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "albireo.env"


def test_lines_are_read_as_docker_and_systemd_read_them(path: Path) -> None:
    path.write_text(
        "# keys\n\n; more\nALBIREO_API_KEY=a,b = c\n QUOTED = 'x y' \nDOUBLE=\"#\"\nEMPTY=\r\nTWICE=1\nTWICE=2\nONE='\n"
    )
    assert read_env_file(path) == {
        "ALBIREO_API_KEY": "a,b = c", "QUOTED": "x y", "DOUBLE": "#", "EMPTY": "", "TWICE": "2", "ONE": "'",
    }  # fmt: skip


def test_keys_of_the_file_stand_beside_flags_and_in_place_of_the_environment_s(path: Path) -> None:
    path.write_text("ALBIREO_API_KEY=a, b,\nCUDA_VISIBLE_DEVICES=0\n")
    assert LiveSettings(path, ("flag",), ("environment",)).current.api_keys == ("flag", "a", "b")
    assert LiveSettings(path, (), ("environment",)).current.api_keys == ("a", "b")
    path.write_text("")
    assert LiveSettings(path, ("flag",), ("environment",)).current.api_keys == ("flag",)
    assert LiveSettings(path, (), ("environment",)).current.api_keys == ("environment",)
    assert LiveSettings(path).current == Settings((), "info")


def test_the_level_is_the_flag_s_then_the_file_s_then_the_environment_s(path: Path) -> None:
    path.write_text("ALBIREO_LOG_LEVEL=Warning")
    assert LiveSettings(path, flag_level="error", environment_level="debug").current.log_level == "error"
    assert LiveSettings(path, environment_level="debug").current.log_level == "warning"
    assert LiveSettings(None, environment_level="debug").current.log_level == "debug"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no ALBIREO_API_KEY any more"),
        (b"ALBIREO_API_KEY=,", "no ALBIREO_API_KEY any more"),
        (b"# nothing\nALBIREO_API_KEY secret", "line 2 is not KEY=value"),
        (b"ALBIREO_API_KEY=new\nALBIREO_LOG_LEVEL=loud", "must be one of debug, info, warning, error"),
        (b"\xff=", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_reload_that_is_refused_changes_nothing_and_tells_no_key(path: Path, text: bytes | None, words: str) -> None:
    path.write_text("ALBIREO_API_KEY=old\nALBIREO_LOG_LEVEL=debug\n")
    settings = LiveSettings(path, environment_keys=("environment",))
    path.unlink() if text is None else path.write_bytes(text)
    with pytest.raises(EnvFileError, match=words) as caught:
        settings.reload()
    assert settings.current == Settings(("old",), "debug")
    assert "secret" not in str(caught.value)
    path.write_text("ALBIREO_API_KEY=new")
    settings.reload()
    assert settings.current == Settings(("new",), "info")


def test_the_file_s_last_key_may_go_where_a_flag_has_one(path: Path) -> None:
    path.write_text("ALBIREO_API_KEY=a")
    settings = LiveSettings(path, ("flag",))
    path.write_text("")
    settings.reload()
    assert settings.current.api_keys == ("flag",)
