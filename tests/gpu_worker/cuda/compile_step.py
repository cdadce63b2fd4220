"""Compiles the kernels at both ends of a step for an H100, which needs no GPU; run by `test_cuda_compile`."""

import re

from compile_layers import Variant, pointers

from albireo.gpu_worker.cuda.kernels.copy_blocks import copy_blocks
from albireo.gpu_worker.cuda.kernels.fetch_plan import fetch_plan
from albireo.gpu_worker.cuda.kernels.finish_step import finish_step
from albireo.gpu_worker.cuda.kernels.stamp import read_clock, stamp
from albireo.gpu_worker.cuda.kernels.step_inputs import chunk_inputs, decode_inputs
from albireo.gpu_worker.cuda.kernels.take_masks import LANES, take_masks

SIZES = {"BLOCK_SIZE": 16, "TABLE_WIDTH": 8192}
RING = {"SLOT_WORDS": 60_000, "NUM_SLOTS": 4}


def variants() -> list[Variant]:
    ints, longs = "*i32", "*i64"
    plan = {**pointers("plans rows admissions alive block_table", ints), "step": longs}
    arrays = {"ROWS_AT": 32, "ADMISSIONS_AT": 9000, "APPENDS_AT": 288, "MAX_ROWS": 256, "TABLE_WIDTH": 8192}
    state = "rows alive last_token num_tokens block_table slots input_ids seq_lens sample_slots sample_positions"
    inputs = {"num_rows": "i32", **pointers(state, ints), **pointers("positions slot_mapping stamps step", longs)}
    counts = dict.fromkeys(["num_rows", "num_tokens", "num_chunks", "num_samples"], "i32")
    packed = "packed block_table slots input_ids seq_lens query_start sample_slots sample_positions"
    chunks = {
        **counts,
        **pointers(packed, ints),
        **pointers("last_token num_tokens_of", ints),
        **pointers("positions slot_mapping sample_index", longs),
    }
    results = "sample_slots sample_positions tokens admissions alive last_token num_tokens results"
    finish = {"num_rows": "i32", **pointers(results, ints), **pointers("step stamps", longs)}
    clock = {"STAMP_STRIDE": 520, "NUM_SLOTS": 4, "IS_TIMED": True}
    ends = [
        Variant(finish_step, finish, {**RING, **clock, "ROWS_AT": 16, "LANES": lanes}, wide_load=None)
        for lanes in (1, 256, 4096)
    ]
    return [
        Variant(fetch_plan, plan, {**RING, **arrays}, wide_load=None),
        Variant(decode_inputs, inputs, {**SIZES, **clock}, wide_load=None),
        Variant(chunk_inputs, chunks, SIZES, wide_load=None),
        *ends,
        Variant(stamp, pointers("stamps step", longs), {"WHICH": 1, "STRIDE": 520, "NUM_SLOTS": 4, "IS_TIMED": True}, 4,
                wide_load=None),
        Variant(copy_blocks, pointers("source target copies", ints), {"FROM": 0, "BLOCK_WORDS": 8192}, 4),
        Variant(read_clock, {"out": longs}, {}, wide_load=None),
    ]  # fmt: skip


def check_masks(stride: int, block: int) -> None:
    """The whole mask is asked for before any of it is waited for, past all caches; the tag is read before and after."""
    types = {**pointers("slots alive positions admissions words asked allowed", "*i32"), "tags": "*i64"}
    variant = Variant(take_masks, types, {"STRIDE": stride, "BLOCK": block, "ON_GPU": True}, LANES.value // 32)
    compiled = variant.compile()
    ptx = compiled.asm["ptx"]
    tag, words, kept = "ld.volatile.global.b64", "ld.volatile.global.v4.b32", "st.global.v4.b32"
    found = re.findall(rf"{tag}|{words}|{kept}|fence.acq_rel.sys", ptx)
    count = block // (4 * LANES.value)
    assert found == [tag, "fence.acq_rel.sys", *[words] * count, *[kept] * count, "fence.acq_rel.sys", tag]
    assert ".local" not in ptx
    print(f"take_masks: {compiled.metadata.shared} bytes of shared memory")


def main() -> None:
    check_masks(4752, 8192)
    check_masks(1024, 1024)
    for variant in variants():
        compiled = variant.compile()
        assert ".local" not in compiled.asm["ptx"], f"{variant.kernel.__name__} keeps something in local memory"
        print(f"{variant.kernel.__name__}: {compiled.metadata.shared} bytes of shared memory")


if __name__ == "__main__":
    main()
