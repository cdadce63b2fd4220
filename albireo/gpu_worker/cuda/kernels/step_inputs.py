"""From the request state, and for prompts from what the host has packed, to the arrays of a forward pass."""

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

LANES = tl.constexpr(256)


@triton.jit(do_not_specialize=["num_rows"])
def decode_inputs(
    num_rows,
    rows,
    alive,
    last_token,
    num_tokens,
    block_table,
    slots,
    input_ids,
    positions,
    slot_mapping,
    seq_lens,
    sample_slots,
    sample_positions,
    stamps,
    step,
    BLOCK_SIZE: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    STAMP_STRIDE: tl.constexpr,
    IS_TIMED: tl.constexpr,
):
    """The first `num_rows` rows, each a token of a sequence. Dead ones (ended on the device, or padding with slot -1)
    have position 0, length 0, write no KV, and are not sampled: what they compute is never seen.

    rows          int32 [>= num_rows]; slots, seq_lens, sample_slots, sample_positions likewise
    input_ids     int32 [n_tokens]; positions, slot_mapping  int64 [n_tokens]
    alive, last_token, num_tokens  int32 [num_slots]
    """
    if IS_TIMED and tl.program_id(0) == 0:
        tl.store(stamps + (tl.load(step) + 1) % NUM_SLOTS * STAMP_STRIDE, globaltimer())
    row = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = row < num_rows
    slot = tl.load(rows + row, mask=inside, other=-1)
    at = tl.maximum(slot, 0).to(tl.int64)
    is_live = inside & (slot >= 0) & (tl.load(alive + at, mask=inside, other=0) != 0)
    token = tl.load(last_token + at, mask=is_live, other=0)
    length = tl.load(num_tokens + at, mask=is_live, other=0)
    position = tl.maximum(length - 1, 0)
    block = tl.load(block_table + at * TABLE_WIDTH + position // BLOCK_SIZE, mask=is_live, other=0).to(tl.int64)
    mapping = tl.where(is_live, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
    tl.store(slots + row, slot, mask=inside)
    tl.store(input_ids + row, token, mask=inside)
    tl.store(positions + row, position.to(tl.int64), mask=inside)
    tl.store(slot_mapping + row, mapping, mask=inside)
    tl.store(seq_lens + row, length, mask=inside)
    tl.store(sample_slots + row, slot, mask=inside)
    tl.store(sample_positions + row, length, mask=inside)


@triton.jit(do_not_specialize=["packed", "num_rows", "num_tokens", "num_chunks", "num_samples"])
def chunk_inputs(
    packed,
    num_rows,
    num_tokens,
    num_chunks,
    num_samples,
    block_table,
    last_token,
    num_tokens_of,
    slots,
    input_ids,
    positions,
    slot_mapping,
    seq_lens,
    query_start,
    sample_slots,
    sample_positions,
    sample_index,
    BLOCK_SIZE: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
):
    """Behind `num_rows` decode rows: `num_tokens` tokens of `num_chunks` prompt chunks, of which `num_samples` end
    their prompt. Grid: programs of LANES lanes for the larger of tokens and rows.

    packed  int32: ids, positions and slots of the tokens; slots, lengths of the sequence so far and ends in the step of
            the chunks; token in the step, slot and position of what is sampled
    last_token, num_tokens_of  int32 [num_slots]: of sequences whose prompt ends, the prompt's. Should their first token
            have to wait for its grammar's mask, a decode row computes the last position again
    query_start  int32 [num_rows + num_chunks + 1]; sample_index int64 [num_rows + num_samples]: tokens that sample
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < num_tokens
    token = tl.load(packed + lane, mask=inside, other=0)
    position = tl.load(packed + num_tokens + lane, mask=inside, other=0)
    slot = tl.load(packed + 2 * num_tokens + lane, mask=inside, other=0).to(tl.int64)
    block = tl.load(block_table + slot * TABLE_WIDTH + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    tl.store(input_ids + num_rows + lane, token, mask=inside)
    tl.store(positions + num_rows + lane, position.to(tl.int64), mask=inside)
    tl.store(slot_mapping + num_rows + lane, block * BLOCK_SIZE + position % BLOCK_SIZE, mask=inside)

    chunks = packed + 3 * num_tokens
    inside = lane < num_chunks
    tl.store(slots + num_rows + lane, tl.load(chunks + lane, mask=inside, other=0), mask=inside)
    length = tl.load(chunks + num_chunks + lane, mask=inside, other=0)
    tl.store(seq_lens + num_rows + lane, length, mask=inside)
    end = tl.load(chunks + 2 * num_chunks + lane, mask=inside, other=0)
    tl.store(query_start + num_rows + 1 + lane, end, mask=inside)

    samples = chunks + 3 * num_chunks
    inside = lane < num_samples
    index = tl.load(samples + lane, mask=inside, other=0).to(tl.int64)
    tl.store(sample_index + num_rows + lane, index, mask=inside)
    slot = tl.load(samples + num_samples + lane, mask=inside, other=0)
    tl.store(sample_slots + num_rows + lane, slot.to(tl.int32), mask=inside)
    tl.store(last_token + slot, tl.load(packed + index - num_rows, mask=inside, other=0), mask=inside)
    position = tl.load(samples + 2 * num_samples + lane, mask=inside, other=0)
    tl.store(num_tokens_of + slot, position, mask=inside)
    tl.store(sample_positions + num_rows + lane, position, mask=inside)

    inside = lane < num_rows
    tl.store(query_start + lane, lane, mask=lane <= num_rows)
    tl.store(sample_index + lane, lane.to(tl.int64), mask=inside)
