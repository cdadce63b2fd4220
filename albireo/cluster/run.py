"""`albireo-run serve --ray`: deploys, says when it is ready, watches, and takes the application down at the end."""

import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from albireo.cluster.options import APP_NAME, ON_NODE, ServePlan, plan_command
from albireo.config import take_passed_sockets
from albireo.errors import StartupError

LOOK_INTERVAL_S: Final = 2.0
THEIR_PROXIES: Final = "at the proxies that Ray Serve has here already (--host, --port and TLS are theirs)"


class Stopped(BaseException):
    """A signal asks for the end. Not an Exception: nobody on the way may take it for an error."""


def serve_on_ray(argv: Sequence[str], address: str | None) -> int:
    """Serves until a signal, or until the application is gone; the exit code. `argv`: what stood behind `serve`.

    Raises StartupError.
    """
    plan = plan_command(argv)
    if take_passed_sockets().fds:
        raise StartupError("with --ray HTTP is taken by Ray's proxies, which cannot take a socket from systemd")
    serve = _import_serve()
    with _connected(address) as cluster, _stopped_by_signals():
        try:
            is_ours = _start_proxies(serve, plan, cluster)
            try:
                _serve(serve, plan, is_ours)
            finally:
                _take_down(serve, is_ours)
        except Stopped:
            return 0
        return 1


def _serve(serve: Any, plan: ServePlan, is_ours: bool) -> None:
    """Until the application is gone. Raises StartupError, Stopped."""
    begin_s = time.monotonic()
    try:
        _deploy(serve, plan)
        seconds = time.monotonic() - begin_s
        where = _url(plan) if is_ours else THEIR_PROXIES
        _say(f"albireo ready: {where}  model {plan.model_name}  {_replicas(plan)} on Ray  ({seconds:.1f} s)")
        _watch(serve)
    except Stopped:
        _say(f"albireo: stopping: running streams have {plan.shutdown_timeout_s:g} s to finish")
        raise


def _import_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise StartupError(f"--ray needs Ray Serve ({error}): pip install 'albireo[ray]'", exit_code=2) from None
    return serve


@contextmanager
def _connected(address: str | None) -> Iterator[str]:
    """Raises StartupError. A cluster that was started here ends here."""
    import ray

    try:
        context = ray.init(address=address, log_to_driver=True)
    except Exception as error:  # Ray's own kinds differ between its versions
        raise StartupError(f"cannot connect to Ray: {_first_line(error)}; see --ray-address") from error
    try:
        yield str(context.address_info.get("gcs_address") or context.address_info.get("address"))
    finally:
        ray.shutdown()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise Stopped, wherever the main thread is. After Ray's own handlers."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_proxies(serve: Any, plan: ServePlan, cluster: str) -> bool:
    """Whether this Serve instance is ours: a cluster has one, whose address is that of who started it."""
    try:
        status = serve.status()
    except Exception as error:
        raise StartupError(f"the cluster at {cluster} does not answer: {_first_line(error)}") from error
    if APP_NAME in status.applications:
        raise StartupError(
            f"the cluster at {cluster} has an application {APP_NAME!r}: stop its albireo-run, or delete it"
        )
    try:
        serve.start(http_options=plan.http_options, proxy_location="EveryNode")
    except Stopped:
        raise
    except Exception as error:
        raise StartupError(f"cannot start Ray's proxies on {_url(plan)}: {_first_line(error)}") from error
    return not status.proxies


def _deploy(serve: Any, plan: ServePlan) -> None:
    from albireo.cluster.app import build_application

    try:
        serve.run(build_application(plan), name=APP_NAME, route_prefix="/")
    except Exception as error:
        status = serve.status().applications.get(APP_NAME)
        raise StartupError(_reason(status) or _first_line(error)) from error


def _watch(serve: Any) -> None:
    """Until the application is gone; says what becomes of it."""
    last = "RUNNING"
    while True:
        time.sleep(LOOK_INTERVAL_S)
        try:
            status = serve.status().applications.get(APP_NAME)
        except Exception as error:
            _say(f"albireo: the cluster is gone: {_first_line(error)}")
            return
        if status is None:
            _say("albireo: somebody has deleted the application")
            return
        if status.status != last:
            last = status.status
            _say(f"albireo: the application is {last.value if hasattr(last, 'value') else last}: {_reason(status)}")


def _take_down(serve: Any, is_ours: bool) -> None:
    """Replicas finish their streams; a second signal leaves them to Ray."""
    try:
        serve.delete(APP_NAME, _blocking=False)  # blocking, it gives up after a minute
        while APP_NAME in serve.status().applications:
            time.sleep(LOOK_INTERVAL_S / 4)
        if is_ours and not serve.status().applications:
            serve.shutdown()
    except Stopped:
        _say("albireo: stopped at once")
    except Exception as error:
        _say(f"albireo: cannot take the application down: {_first_line(error)}")


def _reason(status: Any) -> str:
    """One line: an engine's own words where it has said some."""
    if status is None:
        return ""
    messages = "\n".join([status.message, *(deployment.message for deployment in status.deployments.values())])
    words = re.findall(rf"^RuntimeError: ({ON_NODE}.*)", messages, re.MULTILINE)
    return str(words[-1]) if words else " ".join(messages.split())


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _replicas(plan: ServePlan) -> str:
    if plan.min_replicas == plan.max_replicas:
        return "1 replica" if plan.min_replicas == 1 else f"{plan.min_replicas} replicas"
    return f"{plan.min_replicas} to {plan.max_replicas} replicas"


def _url(plan: ServePlan) -> str:
    host, port = plan.http_options["host"], plan.http_options["port"]
    scheme = "https" if "ssl_certfile" in plan.http_options else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
