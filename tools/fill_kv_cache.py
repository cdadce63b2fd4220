"""Every KV block of a server written once, so that the memory of its workers says something.

On the CPU a KV cache takes its memory when it is first written, 2 MB of a tensor at a time
(gpu_worker/kv_cache.py), and the pool hands out blocks that were never used before it evicts. So a worker grows by the
size of its cache, however long it takes until as many different tokens have come as fit into it: a leak, to whoever
watches its memory.
"""

import json
import time
import urllib.request
from itertools import count

CONTENTS = range(16, 2000)
"""Token ids of the prompts, which every vocabulary has."""


def fill_kv_cache(url: str, block_size: int = 16, timeout_s: float = 300.0) -> int:
    """Sends prompts, no two alike, until each block holds a part of one that can be found again: such a block is full
    of keys and values, hence written. Returns the number of blocks. Raises TimeoutError when that does not come to
    be, as without prefix caching."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
        max_model_len = json.load(response)["data"][0]["max_model_len"]
    blocks_per_prompt = (max_model_len - 1) // block_size
    numbers = count()
    deadline = time.monotonic() + timeout_s
    while True:
        num_blocks, num_filled = block_counts(url)
        # a block for the token behind a prompt is the first of the next one's, and is left over at the end
        if num_filled >= num_blocks - 1:
            return num_blocks
        if time.monotonic() > deadline:
            raise TimeoutError(f"{num_filled} of {num_blocks} KV blocks were filled in {timeout_s:.0f} s")
        for _ in range(-(-(num_blocks - num_filled) // blocks_per_prompt)):
            _complete(url, _prompt(next(numbers), blocks_per_prompt * block_size))


def block_counts(url: str) -> tuple[int, int]:
    """How many KV blocks the server has, and how many of them a prefix hit can find."""
    with urllib.request.urlopen(f"{url}/engine/events", timeout=10) as events:
        for line in events:
            if line.startswith(b"data: ") and "engine" in (event := json.loads(line[6:])):
                return event["engine"]["num_blocks"], event["engine"]["num_blocks_cached"]
    raise ConnectionError("the engine's events ended")


def _prompt(number: int, num_tokens: int) -> list[int]:
    """Prompts of different numbers differ in their first block, hence share none."""
    return [
        CONTENTS[number % len(CONTENTS)],
        CONTENTS[number // len(CONTENTS)],
        *(CONTENTS[place % len(CONTENTS)] for place in range(num_tokens - 2)),
    ]


def _complete(url: str, prompt: list[int]) -> None:
    body = json.dumps({"prompt": prompt, "max_tokens": 1, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        response.read()
