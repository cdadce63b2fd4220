"""The table of sampling parameters: what a plan enters, and what sampled tokens change."""

from dataclasses import replace
from typing import Any

import numpy as np
from admitted import MAX_MODEL_LEN, admit, few_tokens, has_penalties, plan_of, recount, requests, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo import limits
from albireo.gpu_worker.sampling.adjust_oracle import Adjustments
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm.layout import ADMISSION


def state_of(table: SamplingTable, slot: int) -> dict[str, Any]:
    """Everything about a slot that may be read."""
    num_stop_ids = table.num_eos_ids[slot] + table.num_stop_ids[slot]
    ends = {
        "stop_ids": num_stop_ids, "bias_ids": table.num_bias[slot], "bias_values": table.num_bias[slot],
        "bad_words": table.bad_words_size[slot], "seen_ids": table.num_seen[slot],
        "seen_counts": table.num_seen[slot], "recent": table.num_recent[slot],
    }  # fmt: skip
    columns = {name: column for name, column in vars(table).items() if isinstance(column, np.ndarray)}
    return {
        name: column[slot, : ends[name]].tolist() if name in ends else column[slot].item()
        for name, column in columns.items()
    }


def seen(table: SamplingTable, slot: int) -> dict[int, int]:
    count = table.num_seen[slot]
    return dict(zip(table.seen_ids[slot, :count].tolist(), table.seen_counts[slot, :count].tolist(), strict=True))


def observe(table: SamplingTable, sampled: dict[int, int]) -> None:
    table.observe(np.array(list(sampled), np.int32), np.array(list(sampled.values()), np.int32))


def test_an_admission_enters_every_parameter() -> None:
    entry = np.zeros(1, ADMISSION)
    values: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 7, "num_logprobs": 3, "repetition_penalty": 1.5,
        "presence_penalty": 0.75, "frequency_penalty": -0.5, "min_position": 99, "num_eos_ids": 1, "num_stop_ids": 2,
    }  # fmt: skip
    for name, value in values.items():
        entry[name] = value
    entry["slot"], entry["seed"], entry["stop_ids"][0, :3] = 2, 2**64 - 5, (11, 12, 13)
    table = SamplingTable(4, MAX_MODEL_LEN)
    untouched = state_of(table, 1)
    table.admit(entry, np.empty(0, np.int32))
    assert {name: getattr(table, name)[2].item() for name in values} == values
    assert table.seed[2] == -5
    assert table.stop_ids[2, :3].tolist() == [11, 12, 13]
    assert state_of(table, 1) == untouched


def test_extras_are_split_between_the_requests_that_have_them() -> None:
    table = SamplingTable(4, MAX_MODEL_LEN)
    biased = Adjustments(logit_bias={5: -1.5, 9: 100.0})
    plain = Adjustments(prompt=[1, 2], output=[3])
    wordy = Adjustments(bad_words=[[4], [5, 6]], output=list(range(20)))
    penalised = Adjustments(presence_penalty=1.0, prompt=[8, 7, 8], output=[8, 9, 9])
    admit(table, {3: biased, 0: plain, 2: wordy, 1: penalised})
    assert table.bias_ids[3, :2].tolist() == [5, 9]
    assert table.bias_values[3, :2].tolist() == [-1.5, 100.0]
    assert table.bad_words[2, :5].tolist() == [1, 4, 2, 5, 6]
    assert table.recent[2].tolist() == list(range(5, 20))
    assert seen(table, 1) == {7: 1, 8: 3, 9: 4}
    assert table.is_special.tolist() == [False, True, True, True]
    assert table.has_penalties.tolist() == [False, True, False, False]


@settings(deadline=None, max_examples=100)
@given(st.lists(requests, min_size=1, max_size=4), st.data())
def test_observing_tokens_equals_counting_the_sequence_from_scratch(start: list[Adjustments], data: Any) -> None:
    table = SamplingTable(8, MAX_MODEL_LEN)
    slots = data.draw(st.permutations(range(8)))[: len(start)]
    sequences = dict(zip(slots, start, strict=True))
    admit(table, sequences)
    for _ in range(data.draw(st.integers(0, 20))):
        rows = data.draw(st.lists(st.sampled_from(slots), unique=True))
        sampled = {slot: data.draw(st.one_of(few_tokens, tokens)) for slot in rows}
        observe(table, sampled)
        for slot, token in sampled.items():
            sequences[slot] = replace(sequences[slot], output=[*sequences[slot].output, token])
    for slot, request in sequences.items():
        assert seen(table, slot) == (recount(request) if has_penalties(request) else {})
        newest = list(request.output)[-(limits.MAX_BAD_WORD_TOKENS - 1) :] if request.bad_words else []
        assert table.recent[slot, : table.num_recent[slot]].tolist() == newest


@settings(deadline=None, max_examples=100)
@given(requests, st.lists(tokens, max_size=20), requests)
def test_nothing_of_a_slots_former_owner_stays(former: Adjustments, sampled: list[int], request: Adjustments) -> None:
    used, fresh = SamplingTable(2, MAX_MODEL_LEN), SamplingTable(2, MAX_MODEL_LEN)
    admit(used, {1: former})
    for token in sampled:
        observe(used, {1: token})
    admit(used, {1: request})
    admit(fresh, {1: request})
    assert state_of(used, 1) == state_of(fresh, 1)
    for token in sampled:
        observe(used, {1: token})
        observe(fresh, {1: token})
    assert state_of(used, 1) == state_of(fresh, 1)


def test_a_slot_that_keeps_no_history_is_left_alone() -> None:
    table = SamplingTable(3, MAX_MODEL_LEN)
    admit(table, {0: Adjustments(), 1: Adjustments(logit_bias={1: 1.0}), 2: Adjustments(presence_penalty=1.0)})
    before = [state_of(table, slot) for slot in (0, 1)]
    observe(table, {0: 5, 1: 5, 2: 5})
    assert [state_of(table, slot) for slot in (0, 1)] == before
    assert seen(table, 2) == {5: 2}


def test_a_long_history_is_found_wherever_it_stands() -> None:
    table = SamplingTable(1, 1000)
    admit(table, {0: Adjustments(prompt=range(1000), presence_penalty=1.0)})
    for token in (0, 63, 64, 999, 1000, 1000):
        observe(table, {0: token})
    expected = dict.fromkeys(range(1000), 1) | {0: 3, 63: 3, 64: 3, 999: 3, 1000: 4}
    assert seen(table, 0) == expected


def test_admitting_a_batch_reads_only_its_own_extras() -> None:
    entries, extras = plan_of({0: Adjustments(logit_bias={1: 2.0}), 1: Adjustments(bad_words=[[7, 8]])})
    table = SamplingTable(2, MAX_MODEL_LEN)
    table.admit(entries[1:], extras)
    assert table.bad_words[1, :3].tolist() == [2, 7, 8]
    assert not table.is_special[0]
