"""How long a step takes on t simulated GPUs: a roofline for what is computed, a latency-bandwidth model for what is
exchanged.

An operation takes the longer of two times: for its arithmetic at the achievable rate, and for its bytes at the
achievable bandwidth (Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4),
2009). Operations of a rank follow each other; ranks do the same work on shards of one size (`checkpoint.shard`:
Megatron-LM's split, padded), so one rank's time is the step's.

A collective takes latency + bytes over the link / achievable bandwidth (the alpha-beta model, Thakur, Rabenseifner,
Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19(1), 2005). Of S bytes a ring sends
2 (t-1)/t S for an all-reduce (Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
JPDC 69(2), 2009), (t-1)/t S for an all-gather of S in all, and an all-to-all (t-1)/t of what a rank holds.

docs/simulator.md has the formulas as a table, and what is left out.
"""

from collections import Counter
from typing import Final, NamedTuple

from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.structs import ModelConfig
from albireo.config import Dtype, SamplingMode
from albireo.sim.spec import DeviceSpec

DTYPE_BYTES: Final[dict[Dtype, int]] = {"bfloat16": 2, "float32": 4}
KERNELS_PER_LAYER: Final = 8
"""Besides attention: norm, q/k/v, rotation and KV write, o; norm, gate and up, activation, down."""
KERNELS_PER_STEP: Final = 4
"""Besides the layers' and the sampler's: inputs, embedding, last norm, LM head."""
SAMPLER_KERNELS: Final = 10
"""Only counted where they are launched one by one; in a graph they are in `sampling.fixed_s`."""
LOCAL_CANDIDATE_BYTES: Final = 64
"""What the `local` mode exchanges of a row: a few dozen bytes (docs/sampling.md)."""


class StepWork(NamedTuple):
    """What of a step determines its time. Sums, so that no time is spent per row."""

    num_rows: int = 0
    """Sequences that decode a token each."""
    context_tokens: int = 0
    """Of those, together: keys that their queries see."""
    num_chunk_tokens: int = 0
    """Prompt tokens."""
    chunk_pairs: int = 0
    """Pairs of a prompt token and a key that it sees, over all chunks."""
    chunk_context_tokens: int = 0
    """Keys that chunks see, over all chunks: each is read once per chunk."""
    num_samples: int = 0
    """Rows that get a token: those that decode, and prompts that end."""

    @classmethod
    def decode(cls, batch: int, context: int) -> "StepWork":
        """`batch` sequences of `context` tokens, the one that is computed included."""
        return cls(num_rows=batch, context_tokens=batch * context, num_samples=batch)

    @classmethod
    def prefill(cls, batch: int, tokens: int, start: int = 0) -> "StepWork":
        """The next `tokens` of `batch` prompts, which end with them, behind `start` that are computed."""
        pairs = chunk_pairs(start, tokens)
        return cls(0, 0, batch * tokens, batch * pairs, batch * (start + tokens), batch)

    def __add__(self, other: "StepWork") -> "StepWork":  # type: ignore[override]
        """Both in one step."""
        return StepWork(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def chunk_pairs(start: int, tokens: int) -> int:
    """Of causal attention: token i of a chunk sees `start` + i + 1 keys."""
    return tokens * start + tokens * (tokens + 1) // 2


class StepTimes(NamedTuple):
    """Seconds, by what they are spent on, in the order of a step."""

    overhead: float
    """What is the same for every step: its start, its kernels' starts, and launches that took longer than the work."""
    linear: float
    """Products of the layers and what is element by element: norms, rotation, activation, the embedding."""
    attention: float
    all_reduce: float
    lm_head: float
    sampling: float
    """Of this rank's part of the logits or rows."""
    sampling_exchange: float
    """The sampling mode's collectives."""

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def working(self) -> float:
        """In which the device computes or moves data of its own memory."""
        return self.linear + self.attention + self.lm_head + self.sampling

    @property
    def sample(self) -> float:
        """From logits to tokens."""
        return self.sampling + self.sampling_exchange


class _Operation(NamedTuple):
    """All of a kind in a step, in seconds: fixed, and per unit of work."""

    flops_s: float
    """Per unit."""
    bytes_s: float
    """Per unit."""
    fixed_bytes_s: float = 0.0
    """Whatever the number of units: the weights."""

    def time(self, units: int) -> float:
        return max(self.flops_s * units, self.fixed_bytes_s + self.bytes_s * units) if units else 0.0


class Roofline:
    """Step times of one model on `num_ranks` devices. A call takes a few microseconds, whatever the step."""

    def __init__(
        self,
        model: ModelConfig,
        num_ranks: int,
        dtype: Dtype,
        spec: DeviceSpec,
        sampling_mode: SamplingMode = "sequence-parallel",
        is_eager: bool = False,
    ) -> None:
        """`is_eager`: no step is a captured graph. Raises CheckpointError where the model cannot be divided."""
        shard = shard_model(model, 0, num_ranks)
        self._spec, self._num_ranks, self._mode = spec, num_ranks, sampling_mode
        self._is_eager = is_eager
        self._num_layers = layers = model.num_layers
        self._element_bytes = element = DTYPE_BYTES[dtype]
        self._hidden = hidden = model.hidden_size
        self._vocab_share, self._vocab_size = shard.vocab.width, model.vocab_size
        share = 1 / (1 + spec.contention * (num_ranks - 1))
        flops, bandwidth = share * getattr(spec.flops, dtype), share * spec.memory_bandwidth
        self._bandwidth = bandwidth * spec.efficiency.bandwidth
        self._link = spec.link.bandwidth * spec.efficiency.link
        self._host = spec.host_bandwidth * spec.efficiency.host
        flops_rate = flops * spec.efficiency.flops
        self._attention_flops = flops * spec.efficiency.attention_flops
        self._attention_bandwidth = bandwidth * spec.efficiency.attention_bandwidth

        def product(inputs: int, outputs: int, count: int = layers, output_bytes: int = element) -> _Operation:
            """Of [n, inputs] with [inputs, outputs], `count` times: 2 n inputs outputs FLOPs; reads the weights and its
            input, writes its output."""
            return _Operation(
                2 * count * inputs * outputs / flops_rate,
                count * (inputs * element + outputs * output_bytes) / self._bandwidth,
                count * inputs * outputs * element / self._bandwidth,
            )

        q_size, kv_size = shard.heads.width * model.head_dim, shard.kv_heads.width * model.head_dim
        inner = shard.inner.width
        # norms read and write the hidden state and the sum beside it, rotation its vectors; the activation halves
        elementwise = layers * (2 * 4 * hidden + 2 * (q_size + 2 * kv_size) + 3 * inner) + 4 * hidden
        self._per_token = (
            product(hidden, q_size + 2 * kv_size),
            product(q_size, hidden),
            product(hidden, 2 * inner),
            product(inner, hidden),
            _Operation(0.0, elementwise * element / self._bandwidth),
        )
        self._lm_head = product(hidden, self._vocab_share, 1, 4)
        self._pair_flops = 4 * q_size
        """Of one layer, for a query and a key: q k and the weighted sum of v, 2 head_dim each."""
        self._key_bytes = 2 * kv_size * element
        self._query_bytes = (2 * q_size + 2 * kv_size) * element
        """Of one layer: a query is read and its output written, and a key and a value."""
        self._windows = tuple(Counter(model.sliding_windows).items())
        self._num_kernels = layers * (KERNELS_PER_LAYER + 1) + KERNELS_PER_STEP
        overhead = spec.overhead
        self._fixed_s = overhead.step_s + (self._num_kernels - layers) * overhead.kernel_s
        self._all_reduces = 0 if num_ranks == 1 else 2 * layers + 1

    def step(self, work: StepWork) -> StepTimes:
        """Seconds of a step. Zero work still has its fixed times."""
        tokens = work.num_rows + work.num_chunk_tokens
        linear = 0.0
        for operation in self._per_token:
            linear += operation.time(tokens)
        sampling, exchange = self._sample(work.num_samples)
        times = StepTimes(
            self._fixed_s,
            linear,
            self._attend(work),
            self._all_reduces * self._collective(2 * tokens * self._hidden * self._element_bytes),
            self._lm_head.time(work.num_samples),
            sampling,
            exchange,
        )
        if work.num_chunk_tokens or self._is_eager:
            launched = self._num_kernels + self._all_reduces + (SAMPLER_KERNELS if work.num_samples else 0)
            missing = launched * self._spec.overhead.launch_s - times.total
            if missing > 0:
                return times._replace(overhead=times.overhead + missing)
        return times

    def swap(self, num_bytes: int) -> float:
        """Seconds for KV blocks between this rank's memory and its host's."""
        return num_bytes / self._host

    def _attend(self, work: StepWork) -> float:
        """Kernels of decode rows and of chunks follow each other. A window bounds what a query sees; of the sums that
        are known its bound is that of all queries together."""
        total = 0.0
        for window, count in self._windows:
            context, pairs = work.context_tokens, work.chunk_pairs
            if window is not None:
                context, pairs = min(context, work.num_rows * window), min(pairs, work.num_chunk_tokens * window)
            for queries, seen, keys in (
                (work.num_rows, context, context),
                (work.num_chunk_tokens, pairs, work.chunk_context_tokens),
            ):
                if queries:
                    arithmetic = self._pair_flops * seen / self._attention_flops
                    reading = (self._key_bytes * keys + self._query_bytes * queries) / self._attention_bandwidth
                    total += count * (max(arithmetic, reading) + self._spec.overhead.attention_s)
        return total

    def _collective(self, num_bytes: float) -> float:
        """Where t ranks exchange (t-1)/t of `num_bytes`."""
        share = (self._num_ranks - 1) / self._num_ranks
        return self._spec.link.latency_s + share * num_bytes / self._link

    def _sample(self, num_samples: int) -> tuple[float, float]:
        """Seconds of sampling and of its collectives. Logits are float32."""
        if not num_samples:
            return 0.0, 0.0
        logit_s = self._spec.sampling.bytes_per_logit / self._bandwidth
        fixed_s = self._spec.sampling.fixed_s
        if self._num_ranks == 1:
            return fixed_s + num_samples * self._vocab_size * logit_s, 0.0
        own_logits_bytes = 4 * num_samples * self._vocab_share
        if self._mode == "gathered":
            exchange = self._collective(self._num_ranks * own_logits_bytes)
            return fixed_s + num_samples * self._vocab_size * logit_s, exchange
        if self._mode == "sequence-parallel":
            rows = -(-num_samples // self._num_ranks)
            exchange = self._collective(own_logits_bytes) + self._collective(4 * num_samples)
            return fixed_s + rows * self._vocab_size * logit_s, exchange
        exchange = self._collective(self._num_ranks * num_samples * LOCAL_CANDIDATE_BYTES)
        return fixed_s + num_samples * self._vocab_share * logit_s, exchange
