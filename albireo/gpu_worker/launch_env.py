"""The environment a CPU worker process must start with. Standard library only, since the supervisor calls it."""


def worker_environment(num_threads: int) -> dict[str, str]:
    """Variables to add to the worker's environment before it is spawned; later is too late for all of them.

    Measured in docs/benchmarks/cpu-attention.md.
    """
    return {
        "OMP_NUM_THREADS": str(num_threads),
        # Idle threads of a team spin for this many rounds (about 15 us), then sleep. The runtime's own default is
        # milliseconds: time that the frontend and the coordinator need, and a step that shares its cores with them
        # takes ten times longer.
        "GOMP_SPINCOUNT": "1000",
        # Pages of 2 MB for torch's large tensors, KV cache and weights above all: a fifth more bandwidth when reading
        # straight on, a tenth when reading blocks that lie anywhere.
        "THP_MEM_ALLOC_ENABLE": "1",
        # A step's activations and logits come from memory that the last step gave back. By default glibc returns what
        # is large to the kernel at once, which hands it out again zeroed, page by page: 4% of a step of 256 rows.
        # Older versions of glibc take 32 MiB at most, and with the other setting alone would do worse than with none.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        # oneDNN and torch's layer over it keep a compiled product, half a megabyte, for each number of rows above ours
        # that they have met, 1,024 each: steps with prompts have many, and the worker grew by 700 MiB over hours. With
        # 64 it grows by 35; a product that was dropped takes 0.4 ms to make (docs/benchmarks/soak.md). One of the two
        # alone bounds nothing.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "LRU_CACHE_CAPACITY": "64",
    }
