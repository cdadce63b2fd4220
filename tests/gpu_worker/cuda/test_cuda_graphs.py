"""Which numbers of rows are captured, and which capture a step takes."""

import select
from collections.abc import Callable

import pytest
import torch

from albireo.gpu_worker.cuda.decode_graphs import DecodeGraphs, bucket_sizes


@pytest.mark.parametrize("most", [1, 2, 3, 16, 17, 32, 33, 100, 256, 300, 1024, 4096])
def test_buckets_ascend_end_with_the_largest_step_and_leave_few_dead_rows(most: int) -> None:
    sizes = bucket_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for rows in range(1, most + 1):
        bucket = next(size for size in sizes if size >= rows)
        assert bucket - rows < max(rows, 32)
    assert len(sizes) <= 44


class Recorded:
    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch


def test_every_size_is_rehearsed_before_it_is_captured_and_a_step_takes_the_next_larger() -> None:
    launched: list[int] = []
    counts: list[int] = []
    graphs = DecodeGraphs(Recorded(), launched.append, [1, 2, 4, 6], counts.append)
    assert launched == [6, 4, 2, 1], "the largest first"
    assert counts == [1, 2, 3, 4]
    launched.clear()
    for rows in (0, 1, 2, 3, 4, 5, 6):
        graphs.run(rows)
    assert launched == [1, 1, 2, 4, 4, 6, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_launch_computes_again_with_what_lies_in_its_tensors() -> None:
    from albireo.gpu_worker.cuda.runtime import CudaRuntime

    runtime = CudaRuntime(0)
    x = torch.zeros(1000, device="cuda")
    out = torch.zeros(1000, device="cuda")

    def launch() -> None:
        out.copy_((x * 2 + 1).cumsum(0))

    launch()
    replay = runtime.capture(launch)
    x.fill_(3.0)
    replay()
    results = runtime.shared_zeros(1000, dtype=torch.float32)
    runtime.finish(results.data_ptr(), out.data_ptr(), out.nbytes)
    assert select.select([runtime.wake.fd], [], [], 1.0)[0], "the wake-up has come"
    assert results[-1].item() == 7000.0, "what was to be copied is there when the wake-up is"
    assert runtime.wake.take() == 1
    assert runtime.wake.take() == 0
