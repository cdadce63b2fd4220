"""What `serve --ray` says, and what it does at the end; Ray itself is a stand-in."""

from types import SimpleNamespace
from typing import Any

import pytest

from albireo.cluster import run
from albireo.cluster.options import plan_command
from albireo.errors import StartupError

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
Traceback (most recent call last):
  File "app.py", line 64, in __init__
    raise RuntimeError(f"{ON_NODE}{ray.util.get_node_ip_address()}: {error}") from None
RuntimeError: on node 192.0.2.7: /m does not exist: MODEL must be a folder"""


def status_of(message: str, deployment_message: str = "") -> Any:
    deployments = {"albireo": SimpleNamespace(message=deployment_message)}
    return SimpleNamespace(status="DEPLOY_FAILED", message=message, deployments=deployments)


class Serve:
    """Of `ray.serve` what the command uses."""

    def __init__(self, applications: dict[str, Any] | None = None, proxies: dict[str, Any] | None = None) -> None:
        self.applications = applications or {}
        self.proxies = proxies or {}
        self.calls: list[str] = []
        self.http_options: dict[str, Any] = {}

    def status(self) -> Any:
        return SimpleNamespace(applications=dict(self.applications), proxies=self.proxies)

    def start(self, http_options: dict[str, Any], proxy_location: str) -> None:
        self.http_options = http_options
        self.calls.append(f"start {proxy_location}")

    def delete(self, name: str, _blocking: bool) -> None:
        assert not _blocking, "Ray waits for a minute and no longer"
        self.calls.append(f"delete {name}")
        self.applications.pop(name, None)

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_of_a_traceback_the_engine_s_own_words_are_told() -> None:
    reason = "on node 192.0.2.7: /m does not exist: MODEL must be a folder"
    assert run._reason(status_of("", TRACEBACK)) == reason
    assert run._reason(status_of("all\n  is well")) == "all is well"
    assert run._reason(None) == ""


def test_proxies_start_where_the_flags_say() -> None:
    serve = Serve()
    assert run._start_proxies(serve, plan_command(["--ray", "--host", "0.0.0.0", "--port", "81"]), "cluster")
    assert serve.calls == ["start EveryNode"]
    assert (serve.http_options["host"], serve.http_options["port"]) == ("0.0.0.0", 81)


def test_proxies_that_are_there_already_are_somebody_else_s() -> None:
    assert not run._start_proxies(Serve(proxies={"node": "HEALTHY"}), plan_command(["--ray"]), "cluster")


def test_an_application_that_is_there_already_is_not_replaced() -> None:
    with pytest.raises(StartupError, match="the cluster at HEAD has an application 'albireo'"):
        run._start_proxies(Serve({"albireo": None}), plan_command(["--ray"]), "HEAD")


@pytest.mark.parametrize(
    ("others", "is_ours", "calls"),
    [
        ({}, True, ["delete albireo", "shutdown"]),
        ({}, False, ["delete albireo"]),
        ({"other": None}, True, ["delete albireo"]),
    ],
)
def test_the_end_takes_along_what_is_ours_and_nothing_else(
    others: dict[str, Any], is_ours: bool, calls: list[str]
) -> None:
    serve = Serve({"albireo": None, **others})
    run._take_down(serve, is_ours)
    assert serve.calls == calls


def test_an_application_that_somebody_has_deleted_ends_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LOOK_INTERVAL_S", 0.0)
    run._watch(Serve())
    assert "somebody has deleted the application" in capsys.readouterr().err


def test_a_cluster_that_is_gone_ends_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LOOK_INTERVAL_S", 0.0)
    run._watch(SimpleNamespace(status=None))
    assert "the cluster is gone" in capsys.readouterr().err
