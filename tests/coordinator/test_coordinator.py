"""The coordinator actor over real sockets and rings, with the fake device as its worker, in one thread."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from coordinator_harness import EOS, NUM_BLOCKS, SCHEDULER, Harness, outputs
from fake_device import reference

from albireo.coordinator.coordinator import RanksDifferError
from albireo.coordinator.grammars import DOWN
from albireo.coordinator.scheduler import Scheduler
from albireo.coordinator.telemetry import Telemetry
from albireo.messages import (
    Abort,
    Finish,
    Rejected,
    SamplingParams,
    Submit,
    Tokens,
    encode,
)
from albireo.shm import layout
from albireo.shm.flight import Part, Unrecorded


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(str(tmp_path))
    yield harness
    harness.close()


def test_each_frontend_hears_of_its_own_requests_one_message_a_step(harness: Harness) -> None:
    for request_id in range(3):
        harness.submit(0, request_id, [1, 2, 5 + request_id])
    harness.submit(1, 0, [9, 9, 9, 9, 9])
    harness.run()
    first, second = harness.received(0), harness.received(1)
    expected = {request_id: reference([1, 2, 5 + request_id], request_id, 8, EOS, ()) for request_id in range(3)}
    assert outputs(first) == expected
    assert outputs(second) == {0: reference([9] * 5, 0, 10, EOS, ())}
    steps = [message.step for message in first if isinstance(message, Tokens)]
    assert len(steps) == len(set(steps))
    admitted = [entry for message in first if isinstance(message, Tokens) for entry in message.admitted]
    assert [entry.request_id for entry in admitted] == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "sampling", "field", "text"),
    [
        ([], 5, {}, "prompt", "the prompt has 0 tokens; between 1 and 63 are possible"),
        ([1] * 64, 5, {}, "prompt", "the prompt has 64 tokens"),
        ([50], 5, {}, "prompt", "between 0 and 49"),
        ([-1], 5, {}, "prompt", "between 0 and 49"),
        ([1], 5, {"stop_token_ids": tuple(range(15))}, "stop_token_ids", "at most 14"),
        ([1], 5, {"bad_words": ((1,) * 16,) * 61}, "bad_words", "may be 1024 in all"),
    ],
)
def test_a_request_that_slipped_through_the_frontend_is_rejected_and_disturbs_nobody(
    harness: Harness, prompt: list[int], max_tokens: int, sampling: dict[str, Any], field: str, text: str
) -> None:
    harness.submit(0, 1, [1, 2, 3])
    harness.submit(1, 2, prompt, max_tokens, **sampling)
    harness.run()
    (rejected,) = harness.received(1)
    assert isinstance(rejected, Rejected)
    assert (rejected.request_id, rejected.field) == (2, field)
    assert text in rejected.message
    assert outputs(harness.received(0)) == {1: reference([1, 2, 3], 1, 8, EOS, ())}


def test_garbage_on_the_socket_is_dropped_and_the_rest_goes_on(harness: Harness) -> None:
    for data in (b"", b"\xff\xff", b"\x81\xa4type\xa3Foo", encode(Abort([77]))):
        harness.send(0, data)
    harness.send(0, b"two", b"frames")
    stop = encode(Submit(5, b"\1\0\0\0", SamplingParams(max_tokens=1, stop_token_ids=(2**31,))))
    harness.send(0, stop)
    harness.submit(0, 1, [1, 2, 3])
    harness.run()
    assert outputs(harness.received(0)) == {1: reference([1, 2, 3], 1, 8, EOS, ())}


def test_an_id_that_is_in_use_is_rejected(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 3], max_tokens=60, ignore_eos=True)
    harness.submit(0, 1, [1, 2, 3])
    harness.start()
    harness.hear()
    (message,) = [m for m in harness.received(0) if isinstance(m, Rejected)]
    assert message.field == "request_id"


def test_an_abort_is_answered_with_nothing_and_frees_everything(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 3], max_tokens=60, ignore_eos=True)
    while not harness.stats["num_blocks_used"][0]:
        harness.coordinator.step()
    harness.send(0, encode(Abort([1])))
    harness.run()
    assert not [finish for _, finish in outputs(harness.received(0)).values() if finish]
    assert harness.stats["num_blocks_used"][0] == 0
    assert harness.stats["num_running"][0] == 0
    assert harness.stats["finished_abort"][0] == 1


def test_the_counters_tell_what_was_done(harness: Harness) -> None:
    for request_id in range(4):
        harness.submit(0, request_id, [7] * 9, max_tokens=6, ignore_eos=True)
    harness.run()
    stats = harness.stats[0]
    assert stats["prompt_tokens"] == 36
    assert stats["generation_tokens"] == 24
    assert stats["finished_length"] == 4
    assert stats["prefix_cache_hits"] == 3 * 8
    assert stats["num_steps"] == stats["num_confirmed_steps"] >= 6
    assert stats["step_device_ns"] == 1000 * stats["num_confirmed_steps"]
    assert stats["num_blocks"] == NUM_BLOCKS
    assert stats["iteration_tokens"]["buckets"].sum() == stats["num_steps"]
    assert stats["iteration_tokens"]["sum"] == 36 - 3 * 8 + 4 * 5
    assert stats["run_ahead_depth"] == SCHEDULER.run_ahead


def test_frontends_can_see_that_there_is_no_grammar_process_for_a_while(harness: Harness) -> None:
    for refusal, shown in ((DOWN, 1), (None, 0), ("this model has no tokenizer for grammars", 0)):
        harness.coordinator._grammars.refusal = refusal
        harness.coordinator.step()
        assert harness.stats["grammars_are_down"][0] == shown


def test_the_flight_record_tells_a_step_from_request_to_answer(harness: Harness) -> None:
    harness.submit(0, 7, [1, 2, 3], max_tokens=3, ignore_eos=True)
    harness.start()
    harness.run()
    records = harness.flight.read().records
    told = [(Part(record["part"]), int(record["step"])) for record in records]
    assert told[:9] == [
        (Part.RECEIVE, 1), (Part.SCHEDULE, 1), (Part.WRITE_PLAN, 1), (Part.SCHEDULE, 2), (Part.WRITE_PLAN, 2),
        (Part.SCHEDULE, 3), (Part.WRITE_PLAN, 3), (Part.DOORBELL, 3), (Part.IDLE, 3),
    ]  # fmt: skip
    assert [step for part, step in told if part is Part.CONFIRM] == [1, 2, 3]
    assert told[-1] == (Part.SEND, 3)


def test_a_gap_is_exposed_only_while_there_is_work(harness: Harness) -> None:
    for request_id in (7, 8):
        harness.submit(0, request_id, [1, 2, 3], max_tokens=3, ignore_eos=True)
        harness.start()
        harness.run()
        harness.now_ns += 10**9  # nothing to do
    records = harness.flight.read().records
    exposed = records[records["part"] == Part.EXPOSED]
    # the harness's device pauses for 1000 ns behind each step; steps 1 and 4 come out of idleness
    assert exposed["step"].tolist() == [2, 3, 5, 6]
    assert (exposed["end_ns"] - exposed["begin_ns"]).tolist() == [1000] * 4
    assert harness.stats["step_exposed_ns"][0] == 4000


@pytest.fixture
def two_ranks(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(str(tmp_path), num_workers=2)
    yield harness
    harness.close()


def test_a_step_is_confirmed_when_the_last_rank_has_published_it(two_ranks: Harness) -> None:
    two_ranks.submit(0, 7, [1, 2, 3])
    two_ranks.start()
    results = two_ranks.execute()
    two_ranks.publish(1, *results)
    two_ranks.coordinator.step()
    assert two_ranks.received(0) == []
    two_ranks.publish(0, *results)
    two_ranks.coordinator.step()
    assert len(outputs(two_ranks.received(0))[7][0]) == 1
    two_ranks.run()
    assert two_ranks.stats["num_running"][0] == 0


@pytest.mark.parametrize("replica", [0, 3])
def test_ranks_that_sampled_different_tokens_end_the_engine(tmp_path: Path, replica: int) -> None:
    harness = Harness(str(tmp_path), num_workers=2, replica=replica)
    harness.submit(0, 7, [1, 2, 3])
    harness.start()
    rows, logprobs = harness.execute()
    harness.publish(0, rows, logprobs)
    rows["token"] += 1
    harness.publish(1, rows, logprobs)
    names = f"worker-{2 * replica} and worker-{2 * replica + 1}"
    with pytest.raises(RanksDifferError, match=f"{names} sampled different tokens in step 1"):
        harness.coordinator.step()
    harness.close()


def test_logprobs_reach_the_requests_that_asked(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], logprobs=2)
    harness.submit(0, 2, [1, 2, 6])
    harness.submit(1, 1, [9] * 40, prompt_logprobs=0)
    harness.run()
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    tokens = []
    for frontend in (0, 1):
        messages = [message for message in harness.received(frontend) if isinstance(message, Tokens)]
        tokens.append(outputs(messages))
        for message in messages:
            ids = np.frombuffer(message.logprob_request_ids, np.uint64).tolist()
            for request_id, record in zip(ids, np.frombuffer(message.logprobs, layout.LOGPROB), strict=True):
                found.setdefault((frontend, request_id), []).append((int(record["position"]), int(record["token"])))
    assert found == {
        (0, 1): list(enumerate(tokens[0][1][0], 3)),
        (1, 1): [(position, 9) for position in range(1, 40)],
    }


def test_what_steps_and_copies_take_is_measured_and_copies_are_counted(tmp_path: Path) -> None:
    harness = Harness(str(tmp_path), scheduler=msgspec.structs.replace(SCHEDULER, num_swap_blocks=20))
    for request_id in range(6):
        harness.submit(0, request_id, [1, 2, 3], 40, ignore_eos=True)
    harness.run()
    assert all(finish is Finish.LENGTH for _, finish in outputs(harness.received(0)).values())
    swap = harness.coordinator._scheduler.swap
    assert swap.costs._token.ns > 0
    assert swap.costs._block.ns > 0
    assert not swap.costs._planned
    assert harness.stats["swapped_out_blocks"][0] == swap.num_swapped_out > 0
    assert harness.stats["swapped_in_blocks"][0] == swap.num_swapped_in > 0
    assert harness.stats["num_swap_blocks_used"][0] == 0
    before = harness.stats.copy()
    scheduler = Scheduler(SCHEDULER, NUM_BLOCKS, (), b"key")
    successor = Telemetry(harness.stats, Unrecorded(), scheduler.counters)
    successor.publish(1, scheduler, 0, 0, 2, False)
    for name in ("swapped_out_blocks", "swapped_in_blocks", "num_preemptions", "generation_tokens"):
        assert harness.stats[name][0] == before[name][0] > 0, f"{name} begins anew with another coordinator"
    harness.close()
