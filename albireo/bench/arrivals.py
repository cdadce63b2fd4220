"""When requests are sent: all at once, or as a renewal process with gamma gaps, as `vllm bench serve` does it."""

import math

import numpy as np
from numpy.typing import NDArray


def arrival_times_s(num_requests: int, request_rate: float, burstiness: float, seed: int) -> NDArray[np.float64]:
    """Seconds after the start at which each request is due, ascending, float64 [num_requests].

    The first is due at 0. Gaps are gamma(shape=burstiness) with mean 1 / request_rate: exponential (a Poisson
    process) at 1, equal at infinity. Like vLLM's, the times are rescaled so that the last request comes exactly when
    the rate says it should; a short run would otherwise offer a load that depends on the seed.
    """
    times = np.zeros(num_requests)
    if math.isinf(request_rate) or num_requests == 1:
        return times
    gaps = np.full(num_requests - 1, 1.0)
    if not math.isinf(burstiness):
        gaps = np.random.default_rng(seed).gamma(burstiness, 1.0 / burstiness, num_requests - 1)
    times[1:] = np.cumsum(gaps)
    due = (num_requests - 1) / request_rate
    # A tiny shape can underflow every gap to 0: then all are due at once, which is what such burstiness means.
    return times * (due / times[-1]) if times[-1] > 0 else times
