"""Which replica Ray's proxies send a request to. Needs Ray, which `make test` does not install."""

import asyncio
import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports warn
    pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'albireo[ray]'")

from ray.serve.request_router import RequestRouter

from albireo.cluster import router
from albireo.cluster.router import ShortQueueRouter

REPLICAS = [SimpleNamespace(replica_id=name) for name in "abc"]


class Router(ShortQueueRouter):
    """Without Ray's own part: what replicas say of their queues is in `said`."""

    def __init__(self) -> None:
        self.said: dict[str, int] = {}
        self.initialize_state()

    @property
    def replica_queue_len_cache(self) -> Any:
        return self.said

    def on_new_queue_len_info(self, replica_id: str, num_ongoing_requests: int) -> None:
        self.said[replica_id] = num_ongoing_requests


@pytest.fixture
def routing(monkeypatch: pytest.MonkeyPatch) -> Router:
    for name in ("on_send_request", "on_request_completed"):
        monkeypatch.setattr(RequestRouter, name, lambda self, *arguments: None)
    return Router()


def choose(routing: Router) -> str:
    ranked = asyncio.run(routing.choose_replicas(REPLICAS))
    assert sorted(rank[0].replica_id for rank in ranked) == ["a", "b", "c"]
    return str(ranked[0][0].replica_id)


def test_a_burst_is_spread_evenly_though_nothing_is_sent_yet(routing: Router) -> None:
    chosen = [choose(routing) for _ in range(9)]
    assert sorted(chosen) == list("aaabbbccc")


def test_a_burst_is_spread_evenly_though_replicas_have_not_said_anything(routing: Router) -> None:
    for _ in range(9):
        routing.on_send_request(choose(routing))
    assert routing._own == {"a": 3, "b": 3, "c": 3}


def test_requests_of_other_proxies_count(routing: Router) -> None:
    routing.said = {"a": 5, "b": 1, "c": 5}
    assert choose(routing) == "b"


def test_ray_need_not_ask_a_replica_that_has_said_nothing_lately(routing: Router) -> None:
    routing.on_send_request("a")
    choose(routing)
    assert routing.said == {"a": 1, "b": 0, "c": 0}


def test_what_has_ended_makes_room(routing: Router) -> None:
    for name in "abc":
        routing.on_send_request(name)
    routing.on_request_completed("b", "id")
    assert choose(routing) == "b"


def test_a_choice_of_which_nothing_came_is_forgotten(routing: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    first, second = choose(routing), choose(routing)
    now_s += router.CHOICE_TTL_S
    assert {choose(routing), choose(routing), choose(routing)} == {"a", "b", "c"}
    assert first != second
