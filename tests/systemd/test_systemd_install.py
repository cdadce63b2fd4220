"""`albireo-run systemd`: what it would do, what it does, what it refuses."""

import os
import stat
from pathlib import Path

import pytest

from albireo.cli import main
from albireo.errors import StartupError
from albireo.systemd.install import closed_folder
from albireo.systemd.steps import WriteFile, perform

FILES = {
    "etc/systemd/system/albireo.service",
    "etc/sysusers.d/albireo.conf",
    "etc/tmpfiles.d/albireo.conf",
    "etc/albireo/albireo.env",
}
SOCKET = "etc/systemd/system/albireo.socket"
INSTALL = ["systemd", "install", "--executable", "/opt/albireo/bin/albireo-run"]


def written(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_dry_run_shows_files_and_commands_and_does_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--socket", "--dry-run", "--model", str(tmp_path), "--", "--host", "::", "--shutdown-timeout", "60"]
    assert main([*INSTALL, *flags]) == 0
    shown = capsys.readouterr().out
    for line in (
        "write /etc/systemd/system/albireo.service (mode 0644)",
        "    ExecStart=/opt/albireo/bin/albireo-run serve --env-file /etc/albireo/albireo.env "
        f"{tmp_path} --host :: --shutdown-timeout 60",
        "    TimeoutStopSec=85s",
        "    ListenStream=[::]:8000",
        '    u albireo - "Albireo LLM server" /var/lib/albireo',
        "write /etc/albireo/albireo.env (mode 0600, unless there is one)",
        "run systemd-sysusers /etc/sysusers.d/albireo.conf",
        "run systemd-tmpfiles --create /etc/tmpfiles.d/albireo.conf",
    ):
        assert line in shown.splitlines()
    assert not Path("/etc/systemd/system/albireo.service").exists()


def test_an_image_gets_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INSTALL, "--root", str(tmp_path), "--user", "llm"]) == 0
    assert written(tmp_path) == FILES
    assert "User=llm" in (tmp_path / "etc/systemd/system/albireo.service").read_text()
    assert stat.S_IMODE((tmp_path / "etc/albireo/albireo.env").stat().st_mode) == 0o600
    assert capsys.readouterr().out.count("wrote ") == len(FILES)


def test_a_socket_that_is_not_wanted_any_more_goes(tmp_path: Path) -> None:
    assert main([*INSTALL, "--root", str(tmp_path), "--socket"]) == 0
    assert main([*INSTALL, "--root", str(tmp_path)]) == 0
    assert written(tmp_path) == FILES


def test_what_an_operator_wrote_stays(tmp_path: Path) -> None:
    environment = tmp_path / "etc/albireo/albireo.env"
    assert main([*INSTALL, "--root", str(tmp_path), "--socket"]) == 0
    environment.write_text("ALBIREO_API_KEY=secret\n")
    assert main([*INSTALL, "--root", str(tmp_path), "--socket"]) == 0
    assert written(tmp_path) == FILES | {SOCKET}
    assert main(["systemd", "uninstall", "--root", str(tmp_path)]) == 0
    assert written(tmp_path) == {"etc/albireo/albireo.env"}
    assert environment.read_text() == "ALBIREO_API_KEY=secret\n"
    assert main(["systemd", "uninstall", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--", "--no-such-flag"], 2, "--no-such-flag"),
        (["--", "--api-key", "secret"], 2, "ALBIREO_API_KEY in /etc/albireo/albireo.env"),
        (["--", "--chat-template", "template.jinja"], 2, "name the whole path"),
        (["--", "some/model"], 2, "--model some/model: a service has no current folder"),
        (["--", "--port", "80"], 2, "--socket"),
        (["--model", "/somewhere", "--", "--model", "/elsewhere"], 2, "named twice"),
        (["--model", "/somewhere/else"], 3, "no folder /somewhere/else"),
        (["--user", "Robert'); --"], 2, "no name"),
        (["--now", "--root", "/image"], 2, "--root"),
        (["--socket", "--", "--port", "0"], 2, "--port 0"),
        (["--socket", "--", "--host", "gpu.example.org"], 2, "IP address"),
        (["--", "--tokenizer", "/a\nb"], 2, "control character"),
    ],
)
def test_what_cannot_be_a_service_is_refused(
    arguments: list[str], code: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        result: object = main([*INSTALL, "--dry-run", *arguments])
    except SystemExit as exited:
        result = exited.code
    assert result == code
    assert reason in capsys.readouterr().err


def test_a_file_in_a_home_or_in_tmp_is_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systemd", "install", "--dry-run", "--executable", "/home/ann/venv/bin/albireo-run"]) == 0
    captured = capsys.readouterr()
    assert "    ProtectHome=read-only" in captured.out.splitlines() and "lies in a home" in captured.err
    assert main(["systemd", "install", "--dry-run", "--executable", "/tmp/albireo-run"]) == 0
    assert "/tmp of its own" in capsys.readouterr().err


def test_a_folder_that_the_service_s_user_may_not_enter_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    inner = tmp_path / "private" / "model"
    inner.mkdir(parents=True)
    inner.parent.chmod(0o700)
    assert closed_folder(inner / "x") in {*tmp_path.parents, inner.parent}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_root_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(INSTALL) == 3
    assert "run it as root" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StartupError, match="run it as root") as raised:
        perform([WriteFile(tmp_path / "albireo.service", "")])
    assert raised.value.exit_code == 3


def test_now_needs_a_systemd_that_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("albireo.systemd.cli.BOOTED", tmp_path / "nothing")
    assert main([*INSTALL, "--dry-run", "--now"]) == 3
    assert "systemd does not run this machine" in capsys.readouterr().err
    monkeypatch.setattr("albireo.systemd.cli.BOOTED", tmp_path)
    assert main([*INSTALL, "--dry-run", "--now", "--socket"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "run systemctl daemon-reload",
        "run systemctl enable --now albireo.socket albireo.service",
    ]
    assert main(["systemd", "uninstall", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "run systemctl disable --now albireo.socket",
        "run systemctl disable --now albireo.service",
    ]
