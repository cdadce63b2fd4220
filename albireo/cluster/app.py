"""The Ray Serve application: `import_path: albireo.cluster.app:build`. Imported on every node, and needs Ray."""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any, Final

import ray
from ray import serve

from albireo.cluster.engine import Engine, EngineStartError
from albireo.cluster.forwarder import Forwarder
from albireo.cluster.options import ON_NODE, ServePlan, plan_config
from albireo.config import environment_api_keys
from albireo.errors import StartupError

log = logging.getLogger(__name__)

LAST_WORDS_S: Final = 1.0
"""How long the errors that clients are told may take to get out before a replica without an engine ends."""

_forwarders: list[Forwarder] = []
"""Of the one replica in this process."""


def build(args: dict[str, Any]) -> Any:
    """`args`: flags of `albireo-run serve` by name. Raises ValueError for flags that make no sense."""
    try:
        return build_application(plan_config(args))
    except StartupError as error:
        raise ValueError(str(error)) from None


def build_application(plan: ServePlan) -> Any:
    """Called where Ray is connected: `--device auto` is cuda where the cluster has a GPU now."""
    device = plan.device
    if device == "auto":
        device = "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"
    flags, options = plan.on(device)
    ingress = serve.ingress(_make_app)(EngineReplica)
    return serve.deployment(ingress, **options).bind(flags, environment_api_keys(), plan.shutdown_timeout_s)


def _make_app() -> Forwarder:
    """Called in the replica's process after its constructor."""
    return _forwarders[-1]


class EngineReplica:
    """One replica: an engine on the node where Ray has placed it, and the way to it. Without the engine it ends, and
    Ray starts another."""

    async def __init__(  # type: ignore[misc]  # Ray's actors may have such a one
        self, serve_flags: Sequence[str], api_keys: Sequence[str], shutdown_timeout_s: float
    ) -> None:
        """`api_keys`: of the environment where the application was built. They go through the environment, where other
        users of the machine do not see them. Raises RuntimeError with the engine's last words."""
        environment = {"ALBIREO_API_KEY": ",".join(api_keys)} if api_keys else {}
        self._engine = Engine(serve_flags, environment, shutdown_timeout_s)
        try:
            await self._engine.start()
        except EngineStartError as error:
            raise RuntimeError(f"{ON_NODE}{ray.util.get_node_ip_address()}: {error}") from None
        _forwarders.append(Forwarder(self._engine.socket_path))
        self._watch = asyncio.create_task(self._end_with_engine())

    async def _end_with_engine(self) -> None:
        """A replica that answers nothing but 503 would be the one with the shortest queue."""
        code = await self._engine.wait_for_end()
        if not self._engine.is_stopping:
            log.error("the engine has ended with exit code %d: this replica ends too", code)
            await asyncio.sleep(LAST_WORDS_S)
            os._exit(1)

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises three times in a row."""
        if not await self._engine.is_well():
            raise RuntimeError("the engine does not answer, or has made no progress for long: GET /health is not 200")

    async def __del__(self) -> None:
        """Called by Ray Serve when the last request has ended."""
        if hasattr(self, "_engine"):
            await self._engine.stop()
