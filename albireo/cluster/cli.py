"""Flags of `albireo-run serve --ray`.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
from collections.abc import Callable


def add_ray_arguments(group: argparse._ArgumentGroup, in_range: "Callable[..., argparse._ActionType]") -> None:
    """`in_range`: the CLI's type of a bounded int."""
    group.add_argument("--ray", action="store_true", help="serve on a Ray cluster, with Ray Serve in front")
    group.add_argument("--ray-address", metavar="ADDRESS",
                       help="of the cluster: HOST:PORT; auto, one that runs here; local, a new one (default: "
                            "RAY_ADDRESS, else one that runs here, else a new one)")  # fmt: skip
    group.add_argument("--ray-min-replicas", type=in_range(1, 4096), metavar="N",
                       help="engines that are always there (default: 1)")  # fmt: skip
    group.add_argument("--ray-max-replicas", type=in_range(1, 4096), metavar="N",
                       help="engines at the most (default: --ray-min-replicas, no autoscaling)")  # fmt: skip
    group.add_argument("--ray-target-ongoing-requests", type=in_range(1, 2**20), metavar="N",
                       help="requests of an engine, running and waiting, above which there should be another (default: "
                            "three quarters of --max-num-seqs)")  # fmt: skip
    group.add_argument("--ray-upscale-delay", type=in_range(0, 86400), metavar="S",
                       help="seconds that there must be too many requests (default: 30)")  # fmt: skip
    group.add_argument("--ray-downscale-delay", type=in_range(0, 86400), metavar="S",
                       help="seconds that there must be too few (default: 600)")  # fmt: skip


def ray_flag_without_ray(args: argparse.Namespace) -> str | None:
    """The first flag that says how to serve on Ray where it is not asked for."""
    if args.ray:
        return None
    given = (name for name, value in vars(args).items() if name.startswith("ray_") and value is not None)
    return next((f"--{name.replace('_', '-')}" for name in given), None)
