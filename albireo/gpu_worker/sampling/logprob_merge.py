"""From all ranks' records of their shares (`logprob_kernels`) to log-probabilities, on every rank alike."""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED, Kernel
from albireo.gpu_worker.kernels.simd import pointer
from albireo.gpu_worker.sampling.arguments import record_pointer
from albireo.gpu_worker.sampling.kernels import MASS_BITS, NEG_INF
from albireo.gpu_worker.sampling.logprob_kernels import ARGUMENTS, WEIGHED, candidates_at, merged_survey
from albireo.shm.layout import LOGPROB

_ONE: Final = 2.0**MASS_BITS


@njit(**INLINED)
def _logprob(value: Any, top: Any, log_mass: Any) -> Any:
    """float32. -inf stays -inf, whatever the largest logit is; +inf is then the largest and counts as a gap of 0."""
    if value == NEG_INF:
        return NEG_INF
    gap = np.float64(0.0) if value == top else np.float64(value) - np.float64(top)
    return np.float32(gap - log_mass)


@njit(**CALLED)
def _merge_top(a: Any, r: Any, top: Any, log_mass: Any, heads: Any, out: Any) -> None:
    """The ranks' ordered lists to one of num_top tokens."""
    heads[:] = 0
    count = np.int64(0)
    while count < pointer(a.num_top, np.int32)[r]:
        best, best_rank, token = NEG_INF, -1, np.int32(-1)
        for rank in range(a.num_ranks):
            if heads[rank] == a.max_top:
                continue
            sent = candidates_at(a, a.all_weighed + (rank * a.num_rows + r) * a.weighed_bytes)[heads[rank]]
            if sent.token < 0:
                continue
            if best_rank < 0 or sent.value > best or (sent.value == best and sent.token < token):
                best, best_rank, token = sent.value, rank, sent.token
        if best_rank < 0:
            break
        heads[best_rank] += 1
        out.top_ids[count], out.top_logprobs[count] = token, _logprob(best, top, log_mass)
        count += 1
    out.num_top = np.int32(count)
    for j in range(count, out.top_ids.size):
        out.top_ids[j] = np.int32(-1)


@cache
def merge_kernel() -> Kernel:
    """From all ranks' records to `out`, whose memory is zero. On one thread."""

    def merge(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        heads = carray(pointer(a.heads, np.int64), (a.num_ranks,))
        records = carray(record_pointer(a.out, LOGPROB), (a.num_rows,))
        for r in range(a.num_rows):
            top, target = merged_survey(a, r)
            total, num_larger = np.int64(0), np.int64(0)
            for rank in range(a.num_ranks):
                address = a.all_weighed + (rank * a.num_rows + r) * a.weighed_bytes
                sent = carray(record_pointer(address, WEIGHED), (1,))[0]
                total += sent.mass
                num_larger += sent.num_larger
            log_mass = math.log(np.float64(total) / _ONE)
            out = records[r]
            out.token = pointer(a.targets, np.int32)[r]
            out.logprob = _logprob(target, top, log_mass)
            out.rank = np.int32(1 + num_larger)
            _merge_top(a, r, top, log_mass, heads, out)

    return Kernel(merge, ARGUMENTS)
