"""From flags of `serve --ray`, or a config file's `args`, to a Ray Serve deployment. Ray itself is not needed here.

Flags are divided: those of the front (address, TLS, Ray's own) are the proxies', all others go to each engine.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from albireo.argument_types import in_range
from albireo.cli import serve_parser
from albireo.cluster.cli import add_ray_arguments
from albireo.cluster.engine import STOP_TIMEOUT_S
from albireo.errors import StartupError

APP_NAME: Final = "albireo"
"""Of the Ray Serve application and of its one deployment."""
IMPORT_PATH: Final = "albireo.cluster.app:build"
ON_NODE: Final = "on node "
"""How a replica's last words begin, so that they are found in the traceback that Ray makes of them."""
ROUTER: Final = "albireo.cluster.router.ShortQueueRouter"
UPSCALE_DELAY_S: Final = 30
DOWNSCALE_DELAY_S: Final = 600
OTHER_REQUESTS: Final = 256
"""Room at a replica for what is no sequence (probes, metrics, lists of models), so that it is the engine that says that
its queue is full (429)."""
HEALTH_PERIOD_S: Final = 10.0
HEALTH_TIMEOUT_S: Final = 15.0
CONSTRUCTOR_TRIES: Final = 3
"""A GPU's memory may still be taken by what ran there before; a model that is missing is not looked for all night."""
DRAIN_LOOK_S: Final = 0.5
"""How often a replica that is to go looks whether its last request has ended."""
_FILES: Final = ("model", "tokenizer", "chat_template", "generation_config", "env_file", "ssl_certfile", "ssl_keyfile")


class ServePlan(Struct, frozen=True):
    """What is asked of Ray Serve."""

    engine_flags: tuple[str, ...]
    """Of each engine's own `albireo-run serve`; without --device, --uds."""
    model_name: str
    http_options: dict[str, Any]
    """Of the proxies."""
    device: str
    num_ranks: int
    """Of one engine."""
    num_cpu_threads: int | None
    shutdown_timeout_s: float
    min_replicas: int
    max_replicas: int
    deployment: dict[str, Any]
    """Options of the deployment that do not depend on the device."""

    def on(self, device: str) -> tuple[tuple[str, ...], dict[str, Any]]:
        """An engine's flags and the deployment's options, where `auto` is this device.

        An engine's processes are all on one node: its bundle is one, which Ray never divides. GPUs that Ray gives to
        the replica are those that the engine sees.
        """
        num_cpus = self.num_ranks
        flags = (*self.engine_flags, "--device", device)
        if device == "cpu":
            num_cpus = self.num_cpu_threads or self.num_ranks
            flags = (*flags, "--cpu-threads", str(num_cpus))
        num_gpus = self.num_ranks if device == "cuda" else 0
        bundle = {"CPU": float(num_cpus)} | ({"GPU": float(num_gpus)} if num_gpus else {})
        return flags, {
            **self.deployment,
            "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
            "placement_group_bundles": [bundle],
            "placement_group_strategy": "STRICT_PACK",
        }


def plan_command(argv: Sequence[str]) -> ServePlan:
    """Of the command line after `serve`; files may be relative to here. Raises StartupError."""
    args = serve_parser().parse_args(list(argv))
    if args.port == 0:
        raise StartupError("--port 0: Ray's proxies need a port that is the same on all nodes", exit_code=2)
    flags = [*_without_front(argv)]
    if args.model_flag or args.model:
        given = args.model_flag or args.model
        names = [] if args.served_model_name else ["--served-model-name", given]
        flags += ["--model", str(Path(given).absolute()), *names]
    for name in _FILES[1:]:
        path = getattr(args, name)
        if path is not None and _is_relative_file(name, path) and not name.startswith("ssl"):
            flags += [_flag(name), str(Path(path).absolute())]
    return _plan(args, flags)


def plan_config(arguments: Mapping[str, Any]) -> ServePlan:
    """Of `args` in a config file of Ray Serve: flags of `serve` by name. Raises StartupError."""
    argv = argv_of(arguments)
    args = _parse(argv)
    for name in ("host", "port", "root_path", "ssl_certfile", "ssl_keyfile", "ray_address"):
        if name in {key.replace("-", "_") for key in arguments}:
            where = "the cluster is the one that it is deployed to" if name == "ray_address" else "see http_options"
            raise StartupError(f"args: {name} is not an engine's: {where}", exit_code=2)
    for name in _FILES:
        path = args.model_flag if name == "model" else getattr(args, name)
        if path is not None and _is_relative_file(name, path):
            raise StartupError(f"args: {name} {path!r} must be a whole path: replicas have no current folder", 2)
    return _plan(args, _without_front(argv))


def argv_of(arguments: Mapping[str, Any]) -> list[str]:
    """`{"model": "/m", "tensor_parallel_size": 2}` as a command line; lists are repeated, true is the flag alone, false
    its absence. Raises StartupError for a name that is no flag of `serve`."""
    known = set(vars(serve_parser().parse_args([])))
    argv: list[str] = []
    for key, value in arguments.items():
        name = str(key).replace("-", "_")
        if name not in known or name == "model_flag":
            raise StartupError(f"args: {key!r} is no flag of albireo-run serve", exit_code=2)
        match value:
            case True:
                argv.append(_flag(name))
            case False if name == "enable_prefix_caching":
                argv.append("--no-enable-prefix-caching")
            case False | None:
                pass
            case list() if name == "served_model_name":
                argv += [_flag(name), *map(str, value)]
            case list():
                argv += [f"{_flag(name)}={each}" for each in value]
            case _:
                argv.append(f"{_flag(name)}={value}")
    return argv


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parser's own end of the process is for command lines."""
    parser = serve_parser()

    def refuse(status: int = 0, message: str | None = None) -> None:
        raise StartupError(f"args: {(message or '').strip().partition(': ')[2]}", exit_code=2)

    parser.exit = refuse  # type: ignore[assignment]
    return parser.parse_args(list(argv))


def _without_front(argv: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--host", "--port", "--root-path", "--ssl-certfile", "--ssl-keyfile"):
        parser.add_argument(flag)
    add_ray_arguments(parser.add_argument_group(), in_range)
    return parser.parse_known_args(list(argv))[1]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_relative_file(name: str, value: str) -> bool:
    """A template may be written out, a generation config has words."""
    if (name == "chat_template" and "{" in value) or (name == "generation_config" and value in ("auto", "vllm")):
        return False
    return not Path(value).is_absolute()


def _plan(args: argparse.Namespace, engine_flags: Sequence[str]) -> ServePlan:
    if args.uds is not None:
        raise StartupError("--uds: with --ray HTTP is taken by Ray's proxies, which listen on --host and --port", 2)
    minimum = args.ray_min_replicas or 1
    maximum = args.ray_max_replicas or minimum
    if maximum < minimum:
        raise StartupError(f"--ray-max-replicas {maximum} must be at least --ray-min-replicas ({minimum})", 2)
    for name in ("ray_target_ongoing_requests", "ray_upscale_delay", "ray_downscale_delay"):
        if getattr(args, name) is not None and maximum == minimum:
            raise StartupError(f"{_flag(name)} is for autoscaling: it needs --ray-max-replicas above {minimum}", 2)
    model = args.model_flag or args.model
    http_options: dict[str, Any] = {"host": args.host, "port": args.port, "root_path": args.root_path}
    for name in ("ssl_certfile", "ssl_keyfile"):
        if getattr(args, name) is not None:
            http_options[name] = str(Path(getattr(args, name)).absolute())
    return ServePlan(
        engine_flags=tuple(engine_flags),
        model_name=(args.served_model_name or [model or "albireo-demo"])[0],
        http_options=http_options,
        device=args.device,
        num_ranks=args.tensor_parallel_size * args.replicas,
        num_cpu_threads=args.cpu_threads,
        shutdown_timeout_s=float(args.shutdown_timeout),
        min_replicas=minimum,
        max_replicas=maximum,
        deployment={
            "name": APP_NAME,
            "max_ongoing_requests": args.replicas * args.max_num_seqs + args.max_num_waiting + OTHER_REQUESTS,
            "graceful_shutdown_timeout_s": float(args.shutdown_timeout) + STOP_TIMEOUT_S,
            "graceful_shutdown_wait_loop_s": DRAIN_LOOK_S,
            "health_check_period_s": HEALTH_PERIOD_S,
            "health_check_timeout_s": HEALTH_TIMEOUT_S,
            "max_constructor_retry_count": CONSTRUCTOR_TRIES,
            "request_router_config": {"request_router_class": ROUTER},
            **_scaling(args, minimum, maximum),
        },
    )


def _scaling(args: argparse.Namespace, minimum: int, maximum: int) -> dict[str, Any]:
    if minimum == maximum:
        return {"num_replicas": minimum}
    target = args.ray_target_ongoing_requests or max(1, args.replicas * args.max_num_seqs * 3 // 4)
    upscale, downscale = args.ray_upscale_delay, args.ray_downscale_delay
    return {
        "autoscaling_config": {
            "min_replicas": minimum,
            "initial_replicas": minimum,
            "max_replicas": maximum,
            "target_ongoing_requests": target,
            "upscale_delay_s": UPSCALE_DELAY_S if upscale is None else upscale,
            "downscale_delay_s": DOWNSCALE_DELAY_S if downscale is None else downscale,
        }
    }
