from pathlib import Path

import pytest

from albireo.serve_flags import has_replicas, server_api_key, shown


def test_a_server_of_one_s_own_is_asked_with_the_key_of_its_flags_or_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALBIREO_API_KEY", raising=False)
    assert server_api_key(["--device", "null"]) is None
    monkeypatch.setenv("ALBIREO_API_KEY", "first,second")
    assert server_api_key(["--device", "null"]) == "first"
    assert server_api_key(["--api-key=own", "--api-key", "other", "--device", "null"]) == "own"
    file = tmp_path / "env"
    file.write_text("ALBIREO_API_KEY=filed\n")
    assert server_api_key(["--env-file", str(file)]) == "filed"
    assert server_api_key(["--env-file", str(tmp_path / "none")]) is None


def test_replicas_are_seen_however_the_flag_is_written() -> None:
    assert has_replicas(["-tp", "2", "--replicas", "3"])
    assert has_replicas(["--replicas=2"])
    assert not has_replicas(["--replicas", "1"])
    assert not has_replicas(["-tp", "2"])


def test_keys_are_not_shown() -> None:
    assert shown(["--api-key", "k", "-tp", "2", "--api-key=k"]) == ["--api-key", "...", "-tp", "2", "--api-key=..."]
