"""Steps that only decode as CUDA graphs: one for each of some numbers of rows, each launched by a single call."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol


class Captures(Protocol):
    def capture(self, launch: Callable[[], None]) -> Callable[[], None]: ...


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Numbers of rows that are captured, ascending; a step takes the next larger one. Few rows cost little beside the
    weights, so powers of two do up to 16; above, steps of at most 32 keep the dead rows below a third."""
    sizes = [size for size in (1, 2, 4, 8, 16, 24) if size < max_num_seqs]
    sizes += range(32, min(max_num_seqs, 256), 32)
    sizes += range(256, max_num_seqs, 128)
    return [*sizes, max_num_seqs]


class DecodeGraphs:
    """A call for each bucket. `launch(n)` launches a decode step of n rows."""

    def __init__(
        self,
        runtime: Captures,
        launch: Callable[[int], None],
        sizes: list[int],
        on_captured: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Runs `launch` once for each size before it is captured: kernels are compiled, and libraries set up. Tells
        `on_captured` how many are done."""
        self._sizes = sizes
        self._graphs: list[Callable[[], None]] = []
        # the largest first: the others' tensors fit into its memory
        for size in reversed(sizes):
            launch(size)
            self._graphs.insert(0, runtime.capture(lambda size=size: launch(size)))  # type: ignore[misc]
            on_captured(len(self._graphs))

    def run(self, num_rows: int) -> None:
        """Launches a step of at least `num_rows` rows, which must be at most the largest size."""
        self._graphs[bisect_left(self._sizes, num_rows)]()
