"""Every byte of shared memory: one numpy structured dtype per record, explicit offsets, one writer per field.

Eight kinds of segment, all made by the supervisor (`shm.segment`), all starting with a `SEGMENT_HEADER`:

plan ring    the coordinator writes step plans, every worker reads all of them (`shm.plan_ring`)
token ring   one per worker: it writes a step's tokens, the coordinator reads them (`shm.token_ring`)
stats        the engine's counters: the coordinator and the workers write, frontends read (`shm.stats`)
collectives  what ranks exchange: each writes its own part, all read (`shm.collective_segment`)
requests     what each frontend counted of its requests: each writes its own part, all read (`shm.request_counts`)
flight       one per process: it writes what it did and when, anyone reads (`shm.flight`)
grammar      which tokens a constrained sequence may sample: the grammar process writes, workers read
             (`shm.grammar_masks`)
routes       what frontends tell each other of where requests go: each writes its own part, all read (`shm.routes`)

Publish order on both rings: the payload, a fence (`shm.fence`), the slot's `sequence`, the ring's `published`,
then the ZeroMQ doorbell. Sequence numbers start at 1 and never repeat; 0 is a slot that was never written.
"""

from typing import Final

import numpy as np

from albireo.limits import MAX_LOGPROBS, MAX_STOP_TOKEN_IDS

MAGIC: Final = int.from_bytes(b"ALBIREO\0", "little")
VERSION: Final = 10
CACHE_LINE: Final = 64
"""Bytes. Cursors of different writers lie on different cache lines."""
ALIGNMENT: Final = 64


def record(size: int, **fields: tuple[object, int]) -> np.dtype[np.void]:
    """A structured dtype of `size` bytes with every field at its stated offset, checked for overlaps."""
    names, formats, offsets = [], [], []
    end = 0
    for name, (fmt, offset) in fields.items():
        dtype = np.dtype(fmt)  # type: ignore[call-overload]
        if offset < end or offset % dtype.base.alignment:
            raise ValueError(f"field {name} at offset {offset} overlaps or is misaligned")
        names.append(name)
        formats.append(dtype)
        offsets.append(offset)
        end = offset + dtype.itemsize
    if end > size:
        raise ValueError(f"fields need {end} bytes, the record has {size}")
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


SEGMENT_HEADER: Final = record(
    64,
    magic=("<u8", 0),
    version=("<u4", 8),
    kind=("<u4", 12),
    num_slots=("<u4", 16),
    slot_bytes=("<u4", 20),
    num_consumers=("<u4", 24),
    # what the slots' arrays were sized from, so that two builds that differ refuse each other
    max_rows=("<u4", 28),
    max_tokens=("<u4", 32),
    max_appends=("<u4", 36),
)
"""First bytes of every segment. Written once by the supervisor, before any child starts."""

KIND_PLAN_RING: Final = 1
KIND_TOKEN_RING: Final = 2
KIND_STATS: Final = 3

CURSOR: Final = record(CACHE_LINE, sequence=("<u8", 0))
"""A ring position on a cache line of its own. `published`: written by the producer; one `consumed` per consumer,
written by that consumer once the *device* is done with the slot."""

PLAN_HEADER: Final = record(
    128,
    sequence=("<u8", 0),
    num_rows=("<i4", 16),
    rows_changed=("<i4", 20),
    num_chunks=("<i4", 24),
    num_chunk_tokens=("<i4", 28),
    num_admissions=("<i4", 32),
    num_appends=("<i4", 36),
    num_extras=("<i4", 40),
    sampling_slice=("<i4", 44),
    num_swap_outs=("<i4", 48),
    num_swap_ins=("<i4", 52),
)
"""A step plan's first bytes; the arrays follow. Writer: the coordinator.

`sequence` is the step number. `num_rows` decode rows come first in the batch, in the order of the last `rows` array
that was shipped: it is shipped only when `rows_changed`, so a steady decode step carries no row at all. A request
that left the batch is one that the new `rows` no longer names.

`sampling_slice`: rows per rank on the sequence-parallel path (`sampling.modes`). The rows that take it, in batch
order, are cut into slices of that many, rank r's beginning at r * sampling_slice; the last ones may be short or
empty. It counts planned rows, dead ones included, so it depends on the plan alone.

`num_swap_outs`, `num_swap_ins`: how many of the plan's `copies` go out of the KV cache, and how many come in behind
them."""

CHUNK: Final = record(
    24,
    slot=("<i4", 0),
    start=("<i4", 4),
    num_tokens=("<i4", 8),
    samples=("<i4", 12),
    score_from=("<i4", 16),
    next_token=("<i4", 20),
)
"""A piece of a prompt: tokens [start, start + num_tokens) of the sequence in `slot`; `samples` is 1 for the last
piece, whose final position yields the next token.

Prompt logprobs are wanted of the prompt's tokens at positions [max(score_from, start + 1), start + num_tokens], each
from the position before it; the last one's id, which belongs to the next piece, is `next_token`, or -1 where there is
none to score. `score_from` is beyond the piece where none are wanted."""

ADMISSION: Final = record(
    192,
    slot=("<i4", 0),
    generation=("<u4", 4),
    seed=("<u8", 8),
    temperature=("<f4", 16),
    top_p=("<f4", 20),
    min_p=("<f4", 24),
    top_k=("<i4", 28),
    num_eos_ids=("<i4", 32),
    num_stop_ids=("<i4", 36),
    stop_ids=(("<i4", (MAX_STOP_TOKEN_IDS,)), 40),
    repetition_penalty=("<f4", 104),
    presence_penalty=("<f4", 108),
    frequency_penalty=("<f4", 112),
    min_position=("<i4", 116),
    num_logprobs=("<i4", 120),
    num_prompt_logprobs=("<i4", 124),
    extras_start=("<i4", 128),
    num_bias=("<i4", 132),
    bad_words_size=("<i4", 136),
    num_seen=("<i4", 140),
    num_recent=("<i4", 144),
    has_grammar=("<i4", 148),
)
"""A request enters `slot`. `stop_ids` holds the EOS ids (`num_eos_ids`, none under ignore_eos) and behind them the
request's own stop ids (`num_stop_ids`). Tokens at positions below `min_position` (prompt length + min_tokens) may be
none of these. `num_logprobs`, `num_prompt_logprobs`: as in `messages.SamplingParams`, -1 for none. `has_grammar` is 1
where each token waits for a mask (`shm.grammar_masks`).

What only some requests have lies in the plan's `extras` (int32) from `extras_start` on, in this order:

num_bias        x 2  logit_bias: token ids, then as many float32 (their bits)
bad_words_size  x 1  for each word its length and its token ids
num_seen        x 2  under penalties: distinct tokens of the sequence, ascending, then for each 2 * (times in the
                     output) + (1 if in the prompt)
num_recent      x 1  under bad words: the newest output tokens, at most MAX_BAD_WORD_TOKENS - 1, oldest first"""

BLOCK_APPEND: Final = record(12, slot=("<i4", 0), index=("<i4", 4), block=("<i4", 8))
"""block_table[slot, index] = block."""

BLOCK_COPY: Final = record(8, kv_block=("<i4", 0), swap_block=("<i4", 4))
"""A whole KV block, over all layers, goes from the KV cache to the swap space, or comes back. A step's copies are done
in their order before anything else of it, and behind all of the steps before: first those out, of which no two have the
same target, then those in."""

TOKEN_HEADER: Final = record(
    64,
    sequence=("<u8", 0),
    num_rows=("<i4", 8),
    num_logprobs=("<i4", 12),
    begin_ns=("<i8", 16),
    end_ns=("<i8", 24),
    stamps=(("<i8", (3,)), 32),
    swap_ns=("<i8", 56),
)
"""One step's results; the row arrays follow. Writer: the worker that owns the ring.
`begin_ns` and `end_ns` (CLOCK_MONOTONIC) bound the device's work on the step: forward pass and sampling, without
reading the plan, preparing inputs and writing results. `stamps`: of a device with a clock of its own, what it said at
the begin, before sampling and at the end; for the worker's use. `swap_ns`: how long the plan's block copies took, which
lie before `begin_ns`; without any it means nothing. A device with a clock of its own leaves there at first what it said
at their begin."""

TOKEN_ROW: Final = record(16, slot=("<i4", 0), generation=("<u4", 4), token=("<i4", 8), finish=("<i4", 12))
"""A row's result: `token` is -1 where the row was dead on the device (it had ended in an earlier step), -2
(`messages.WAITED`) where its grammar's mask was not there in time: nothing was sampled, and its state is what it was;
`finish` is a `messages.Finish` (NONE, EOS or STOP_TOKEN; the coordinator knows LENGTH by itself)."""

LOGPROB: Final = record(
    192,
    slot=("<i4", 0),
    generation=("<u4", 4),
    position=("<i4", 8),
    token=("<i4", 12),
    logprob=("<f4", 16),
    rank=("<i4", 20),
    num_top=("<i4", 24),
    top_ids=(("<i4", (MAX_LOGPROBS,)), 32),
    top_logprobs=(("<f4", (MAX_LOGPROBS,)), 112),
)
"""Log-probability of the token at `position` of a sequence, under the model's unmodified distribution: before
temperature, penalties, bias and filters. `rank` is 1 for the most likely token. `num_top` most likely tokens stand
beside it, by falling logit and rising id. Writer: the worker that owns the ring."""

NUM_REQUEST_BUCKETS: Final = 23

REQUEST_HISTOGRAM: Final = record(192, buckets=(("<u8", (NUM_REQUEST_BUCKETS,)), 0), sum=("<f8", 184))
"""Observations per bucket, each by itself; a histogram of fewer buckets leaves the last ones 0. `sum`: of the observed
values, in the metric's unit."""

ENGINE_STATS: Final = record(
    512,
    # written by the coordinator, once a step
    heartbeat_ns=("<i8", 0),
    grammars_are_down=("<i8", 8),
    num_running=("<i8", 16),
    num_waiting=("<i8", 24),
    num_blocks=("<i8", 32),
    num_blocks_used=("<i8", 40),
    prefix_cache_queries=("<u8", 48),
    prefix_cache_hits=("<u8", 56),
    prompt_tokens=("<u8", 64),
    generation_tokens=("<u8", 72),
    num_preemptions=("<u8", 80),
    num_steps=("<u8", 88),
    num_confirmed_steps=("<u8", 96),
    finished_stop=("<u8", 104),
    finished_length=("<u8", 112),
    finished_abort=("<u8", 120),
    progress_ns=("<i8", 128),
    step_device_ns=("<u8", 136),
    step_exposed_ns=("<u8", 144),
    num_blocks_cached=("<i8", 152),
    run_ahead_depth=("<i8", 160),
    swapped_out_blocks=("<u8", 168),
    swapped_in_blocks=("<u8", 176),
    num_swap_blocks_used=("<i8", 184),
    iteration_tokens=(REQUEST_HISTOGRAM, 192),
)
"""The engine's gauges and counters (since start). Writer: the coordinator; when it has died the supervisor, until
another is there. Readers: frontends, on /metrics and
/health. Each field is read on its own; fields of one read may be a step apart. `progress_ns`: when a step was last
confirmed or the engine was last idle. Token counts and queries/hits are tokens; `step_exposed_ns` sums the time
between the end of a step and the begin of the next while there was one to run. `run_ahead_depth`: how many steps past
the last confirmed one may be planned now. `swapped_*`: KV blocks copied to host memory and back;
`num_swap_blocks_used`: blocks of it that hold a preempted request's. `iteration_tokens`: of planned steps, prompt and
decode tokens together, over `shm.stats.ITERATION_TOKENS`. `grammars_are_down`: 1 while the replica has no grammar
process and gets none for a while, so that it takes no constrained request."""

WORKER_HEARTBEAT: Final = record(
    CACHE_LINE, heartbeat_ns=("<i8", 0), step=("<u8", 8), running_step=("<u8", 16), collective=("<u8", 24),
    waiting_for=("<i4", 32), waiting_in=("<i4", 36),
)  # fmt: skip
"""One per worker, in the stats segment behind ENGINE_STATS. Writer: that worker.

`heartbeat_ns`: CLOCK_MONOTONIC, renewed before and after each step, in every collective and, while it waits for
another rank, about ten times a second; within a captured step counted up at every kernel. A rank whose own does not
advance is stuck by itself. `step`: the last one
finished; `running_step`: the one under way, 0 between steps. `collective`: how many this rank has begun.
`waiting_for`: 1 + the rank that it waits for in a collective, 0 when it does not wait; `waiting_in`: which kind of
collective (`messages.CollectiveKind`)."""

DEVICE_USE: Final = record(
    CACHE_LINE,
    valid=("<i8", 0),
    read_ns=("<i8", 8),
    energy_start_mj=("<i8", 16),
    energy_mj=("<i8", 24),
    utilization_perc=("<i8", 32),
    memory_used_bytes=("<i8", 40),
    power_mw=("<i8", 48),
    busy_ns=("<i8", 56),
)
"""What a rank's GPU uses and has used; one per worker, in the stats segment behind all WORKER_HEARTBEAT. Writer: that
worker. Readers: frontends, on /metrics; each field is read on its own.

`valid`: the `shm.device_use.Figure`s that are there; the others' fields mean nothing. Publish order: the fields, a
fence, `valid`. `read_ns`: CLOCK_MONOTONIC, just before the driver was asked. `energy_mj`: millijoules of the whole GPU
since its driver was loaded, `energy_start_mj` of them before the worker's first reading. `utilization_perc` is of 100.
`busy_ns`: sum of the times that steps took on the device."""

KIND_COLLECTIVES: Final = 4

COLLECTIVE_GROUP: Final = record(CACHE_LINE, released=("<u4", 0))
"""Behind the header of a collectives segment. `released`: the last barrier that all ranks have reached, modulo 2^32;
a futex. Written by the rank that arrives last; where several believe that they are, they write the same value."""

COLLECTIVE_RANK: Final = record(
    CACHE_LINE, arrived=("<u4", 0), asleep=("<u4", 4), closed=("<u4", 8), operation=(("<u8", (2,)), 16)
)
"""One per rank, behind COLLECTIVE_GROUP. Writer: that rank.

`arrived`: the last barrier that it has reached, modulo 2^32. `asleep`: 1 while it waits for `released` in the kernel.
`closed`: 1 when it has left. `operation`: what the data in each of its two buffers belongs to, so that ranks that
have come apart notice (`gpu_worker.collectives.shm`). Publish order: buffer and `operation`, `arrived`, `released`,
each with the atomics of `gpu_worker.collectives.atomics`, never by numpy; `closed` behind a fence."""

KIND_FLIGHT: Final = 5
NUM_FLIGHT_PARTS: Final = 24
NUM_FLIGHT_BUCKETS: Final = 22

FLIGHT_HEAD: Final = record(CACHE_LINE, written=("<u8", 0), pid=("<i8", 8), name=("S32", 16), beat_ns=("<i8", 48))
"""Behind the header of a flight segment. `name`: the process's, written by the supervisor; the rest by that process.
`written`: records ever written; the last `num_slots` of them are there. `beat_ns`: CLOCK_MONOTONIC, renewed at least
twice a second while the process's loop turns; 0 before it does (workers have a WORKER_HEARTBEAT instead)."""

FLIGHT_TOTALS: Final = record(192, buckets=(("<u8", (NUM_FLIGHT_BUCKETS,)), 0), sum_ns=("<u8", 176))
"""One per part, NUM_FLIGHT_PARTS of them behind FLIGHT_HEAD: how long it took since the start, as a histogram over
`shm.flight.BOUNDS_NS`; the last bucket is what took longer. Writer: the process."""

FLIGHT_RECORD: Final = record(
    32,
    step=("<u8", 0),
    begin_ns=("<i8", 8),
    end_ns=("<i8", 16),
    part=("<u2", 24),
    rank=("<u2", 26),
    num_rows=("<u4", 28),
)
"""A stretch of time (CLOCK_MONOTONIC) that a process spent on one part (`shm.flight.Part`) of one step; step 0 where
it belongs to none. `rank`: the number in the process's name. Publish order: the record, a fence, `written`."""

KIND_REQUESTS: Final = 6

REQUEST_COUNTS: Final = record(
    2752,
    finished_stop=("<u8", 0),
    finished_length=("<u8", 8),
    finished_abort=("<u8", 16),
    finished_error=("<u8", 24),
    finished_timeout=("<u8", 32),
    time_to_first_token=(REQUEST_HISTOGRAM, 64),
    inter_token_latency=(REQUEST_HISTOGRAM, 256),
    time_per_output_token=(REQUEST_HISTOGRAM, 448),
    e2e_latency=(REQUEST_HISTOGRAM, 640),
    queue_time=(REQUEST_HISTOGRAM, 832),
    prefill_time=(REQUEST_HISTOGRAM, 1024),
    decode_time=(REQUEST_HISTOGRAM, 1216),
    inference_time=(REQUEST_HISTOGRAM, 1408),
    prompt_tokens=(REQUEST_HISTOGRAM, 1600),
    generation_tokens=(REQUEST_HISTOGRAM, 1792),
    params_n=(REQUEST_HISTOGRAM, 1984),
    params_max_tokens=(REQUEST_HISTOGRAM, 2176),
    max_num_generation_tokens=(REQUEST_HISTOGRAM, 2368),
    prefill_kv_computed_tokens=(REQUEST_HISTOGRAM, 2560),
)
"""One per frontend and replica, behind the header of the requests segment. Writer: that frontend. Readers: all
frontends, on /metrics, whichever of them is asked; each field is read on its own. What the histograms count, and their
buckets, is in `frontend.request_metrics`."""

KIND_GRAMMAR: Final = 7

GRAMMAR_TAG: Final = record(8, tag=("<u8", 0))
"""Whose mask lies in a slot's place: (generation << 32) | position of the token that it is for; 0 for none. Writer: the
grammar process. Publish order: 0, a fence, the mask, a fence, the tag. See `shm.grammar_masks`."""

KIND_ROUTES: Final = 8

ROUTES_KEY: Final = record(CACHE_LINE, key=(("<u1", (16,)), 0))
"""Behind the header of the routes segment: of the hashes in its logs. Writer: the supervisor, at the start."""

ROUTE_PART: Final = record(
    CACHE_LINE,
    num_sequences=("<i8", 0),
    num_prompt_tokens=("<i8", 8),
    num_chunks=("<i8", 16),
    first_chunk=("<i8", 24),
)
"""One per frontend and replica, behind ROUTES_KEY, and behind all of them a log of each, u64[shm.routes.LOG_CHUNKS], in
the same order: of all frontends' requests to the first replica, then to the next. Writer: that frontend. Readers: all
frontends.

`num_sequences`, `num_prompt_tokens`: what its requests there are and have yet to compute. `num_chunks`: how many chunks
of prompts it has sent there; their hashes are in the log, each at its number modulo the log's size. `first_chunk`: the
first that the replica may still have."""
