"""What a worker's memory does: it grows by its KV cache, once, and a watch on it that has seen that sees all else."""

import subprocess
import sys

import pytest
from fill_kv_cache import fill_kv_cache
from process_watch import MemoryCourse
from server import Server

pytestmark = pytest.mark.e2e
KV_MIB = 32
AT_START_MIB = 20
"""A huge page of the keys and of the values of each of the demo model's five layers, written before it is ready."""
LEAK = """
import sys
kept = []
for size in sys.stdin:
    kept.append(b"x" * int(size))
    print(flush=True)
"""


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_worker_grows_by_its_kv_cache_once() -> None:
    with Server("--kv-cache-bytes", f"{KV_MIB}M", "--max-model-len", "512", "--cpu-threads", "1") as server:
        course = MemoryCourse({"worker": server.children()["albireo-worker-0"]})
        course.sample("ready")
        fill_kv_cache(server.url)
        course.sample("filled")
        # 14 MiB of keys and values; blocks that were never used would be the first that are taken for them
        for number in range(12):
            server.post("/v1/completions", {"prompt": [2500 - number] * 31 * 16, "max_tokens": 1, "temperature": 0})
        course.sample("filled anew")
    assert course.grown("ready", "filled", KV_MIB - AT_START_MIB), course.table()
    assert not course.grown("filled", "filled anew", 8.0), course.table()


def test_a_process_that_keeps_ten_mib_is_named() -> None:
    with subprocess.Popen([sys.executable, "-c", LEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        course = MemoryCourse({"leaky": process.pid})
        for moment, mib in (("begin", 0), ("50%", 20), ("100%", 10)):
            process.stdin.write(b"%d\n" % (mib << 20))
            process.stdin.flush()
            process.stdout.readline()
            course.sample(moment)
        process.stdin.close()
    assert course.grown("50%", "100%", 8.0)
    assert not course.grown("50%", "100%", 12.0)
