"""The environment a CPU worker process must start with. Standard library only, since the supervisor calls it."""


def worker_environment(num_threads: int) -> dict[str, str]:
    """Variables to add to the worker's environment before it is spawned."""
    return {"OMP_NUM_THREADS": str(num_threads)}
