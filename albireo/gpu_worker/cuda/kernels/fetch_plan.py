"""The first kernel of a step: the plan's changes, from the ring of plans to the request state.

Which slot of the ring it is follows from the device's own count of steps, so that a captured step is launched without
any argument.
"""

import triton
import triton.language as tl

NUM_ROWS = tl.constexpr(4)
ROWS_CHANGED = tl.constexpr(5)
NUM_ADMISSIONS = tl.constexpr(8)
NUM_APPENDS = tl.constexpr(9)
"""int32 words of PLAN_HEADER; tests hold them to `shm.layout`."""
ADMISSION_WORDS = tl.constexpr(48)
APPEND_WORDS = tl.constexpr(3)
LANES = tl.constexpr(256)


@triton.jit
def fetch_plan(
    plans,
    step,
    rows,
    admissions,
    alive,
    block_table,
    SLOT_WORDS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    ROWS_AT: tl.constexpr,
    ADMISSIONS_AT: tl.constexpr,
    APPENDS_AT: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
):
    """Grid: any number of programs, which share the work.

    plans        int32 [NUM_SLOTS, SLOT_WORDS]; *_AT are words into a slot
    step         int64 [1]: number of the last step
    rows         int32 [MAX_ROWS]: slots of the decode rows in batch order, then -1
    admissions   int32 [num_slots, 48]: each slot's `layout.ADMISSION`
    alive        int32 [num_slots]
    block_table  int32 [num_slots, TABLE_WIDTH]
    """
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    index = (tl.load(step) + 1) % NUM_SLOTS
    plan = plans + index * SLOT_WORDS
    lane = tl.arange(0, LANES)
    rows_changed = tl.load(plan + ROWS_CHANGED)
    num_rows = tl.load(plan + NUM_ROWS)
    num_appends = tl.load(plan + NUM_APPENDS)
    num_admissions = tl.load(plan + NUM_ADMISSIONS)

    if rows_changed != 0:
        for start in range(program * LANES, MAX_ROWS, num_programs * LANES):
            row = start + lane
            slot = tl.load(plan + ROWS_AT + row, mask=row < num_rows, other=-1)
            tl.store(rows + row, slot, mask=row < MAX_ROWS)

    for start in range(program * LANES, num_appends, num_programs * LANES):
        append = plan + APPENDS_AT + (start + lane) * APPEND_WORDS
        inside = start + lane < num_appends
        slot = tl.load(append, mask=inside, other=0).to(tl.int64)
        entry = tl.load(append + 1, mask=inside, other=0)
        block = tl.load(append + 2, mask=inside, other=0)
        tl.store(block_table + slot * TABLE_WIDTH + entry, block, mask=inside)

    word = tl.arange(0, 64)
    for number in range(program, num_admissions, num_programs):
        record = plan + ADMISSIONS_AT + number * ADMISSION_WORDS
        slot = tl.load(record).to(tl.int64)
        inside = word < ADMISSION_WORDS
        value = tl.load(record + word, mask=inside, other=0)
        tl.store(admissions + slot * ADMISSION_WORDS + word, value, mask=inside)
        tl.store(alive + slot, 1)
