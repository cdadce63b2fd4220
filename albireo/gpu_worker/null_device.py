"""A device that obeys plans and computes nothing: what is left of a step is the control plane's own work.

Its results have the form and the order of a real device's; its tokens are those of `token_rule`. It needs no torch,
loads no weights, allocates no KV cache and copies no block of it.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Final

from albireo.checkpoint import kv_bytes_per_block
from albireo.checkpoint.shard import shard_model
from albireo.config import WorkerConfig
from albireo.gpu_worker.token_rule import RuleState
from albireo.shm.flight import Part, Recorder
from albireo.shm.plan_ring import PlanSlot
from albireo.shm.token_ring import TokenSlot

_PR_SET_TIMERSLACK: Final = 29
_TIMER_SLACK_NS: Final = 1_000


def rank_kv_blocks(config: WorkerConfig) -> int:
    """KV blocks that `kv_cache_bytes` of the config hold on one rank."""
    local = shard_model(config.model, config.rank, config.num_workers).local(config.model)
    return config.kv_cache_bytes // kv_bytes_per_block(local, config.scheduler.block_size, config.dtype)


class NullDevice:
    """One rank; all ranks follow the same rule and exchange nothing."""

    name = "null"

    def __init__(self, config: WorkerConfig, recorder: Recorder, clock_ns: Callable[[], int]) -> None:
        """The calling thread's timer slack is set to a microsecond: by default the kernel adds up to 50 to a sleep."""
        self.num_kv_blocks = rank_kv_blocks(config)
        self.state = RuleState(config.scheduler)
        self._recorder = recorder
        self._clock_ns = clock_ns
        self._vocab_size = config.model.vocab_size
        self._step_ns = round(config.null_step_ms * 1e6)
        if self._step_ns:
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)

    def execute(self, plan: PlanSlot, result: TokenSlot) -> None:
        """Runs one step: applies the plan, says the next tokens, writes `result`. The device's work on it is the rule
        and a sleep, `null_step_ms` together."""
        self.state.apply(plan)
        result.header["begin_ns"] = begin_ns = self._recorder.mark(Part.FETCH_PLAN)
        sampled = self.state.sample(plan, self._vocab_size)
        if self._step_ns:
            time.sleep(max(0, begin_ns + self._step_ns - self._clock_ns()) / 1e9)
        result.header["end_ns"] = self._recorder.mark(Part.FORWARD)
        self.state.write(sampled, plan, result)
