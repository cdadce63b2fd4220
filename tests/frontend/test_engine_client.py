"""The engine link: exactly one terminal event per request, and one request's trouble is no other's."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_scene import PROMPT, Engine, Letters, Log, Notes, Scene, new_client, play_scene

from albireo.errors import InternalError, QueueTimeoutError, TooManyRequestsError, UnavailableError
from albireo.frontend.generation import Generation
from albireo.frontend.token_scores import TokenScores
from albireo.messages import (
    Abort,
    Admitted,
    Crashed,
    Expired,
    Finish,
    Rejected,
    Resumed,
    SamplingParams,
    Submit,
    Tokens,
)
from albireo.shm.flight import Part
from albireo.shm.layout import REQUEST_COUNTS

Play = Callable[[Scene], None]


@pytest.fixture
def play(run_dir: Path) -> Play:
    """Runs a scene with an engine link of its own."""
    return lambda scene: play_scene(run_dir, scene)


def test_a_request_ends_once_and_later_rows_are_dropped(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit()
        await engine.step((generation, 0, Finish.NONE))
        await engine.step((generation, 1, Finish.LENGTH))
        await engine.step((generation, 2, Finish.LENGTH))
        assert (log.ends, generation.finish_reason, generation.take()[0]) == (1, "length", "ab")
        assert engine.client.num_live == 0

    play(scene)


def test_after_an_abort_nothing_more_is_heard_of_a_request(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit()
        engine.client.abort([generation, generation])
        await engine.step((generation, 0, Finish.NONE))
        await engine.say(Rejected(generation.request_id, "prompt", "no"))
        assert (log.calls, generation.ended) == (0, False)

    play(scene)


def test_aborts_of_one_turn_are_one_message(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generations = [engine.submit()[0] for _ in range(3)]
        for generation in generations:
            engine.client.abort([generation])
        assert (await engine.heard())[3:] == [Abort([1, 2, 3])]

    play(scene)


def test_a_stop_string_ends_a_request_once_and_aborts_it(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit("bc")
        await engine.step((generation, 0, Finish.NONE))
        await engine.step((generation, 1, Finish.NONE))
        await engine.step((generation, 2, Finish.NONE))
        await engine.step((generation, 3, Finish.LENGTH))
        assert (log.ends, generation.finish_reason, generation.stop_reason) == (1, "stop", "bc")
        assert (generation.take()[0], generation.num_tokens) == ("a", 3)
        assert await engine.heard() == [Abort([generation.request_id])]

    play(scene)


def test_a_stop_string_in_the_last_token_needs_no_abort(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit("b")
        await engine.step((generation, 1, Finish.LENGTH))
        assert generation.finish_reason == "stop"
        assert await engine.heard() == []

    play(scene)


def test_text_held_back_for_a_stop_string_is_shown_at_the_end(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit("bcd")
        await engine.step((generation, 1, Finish.NONE))
        assert log.calls == 0
        await engine.step((generation, 2, Finish.LENGTH))
        assert (generation.finish_reason, generation.take()[0]) == ("length", "bc")

    play(scene)


def test_one_request_s_bug_ends_that_request_alone(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        broken, log = engine.submit()
        fine, _ = engine.submit()
        await engine.step((broken, 99, Finish.NONE), (fine, 0, Finish.LENGTH))
        assert isinstance(broken.error, InternalError)
        assert "bug" not in broken.error.message
        assert log.ends == 1
        assert (fine.finish_reason, fine.take()[0]) == ("length", "a")
        assert await engine.heard() == [Abort([broken.request_id])]
        assert engine.failures == []
        ends = {name: int(engine.counts[name][0]) for name in ("finished_error", "finished_abort", "finished_length")}
        assert ends == {"finished_error": 1, "finished_abort": 0, "finished_length": 1}

    play(scene)


def test_a_message_of_another_kind_is_a_failure_of_the_link(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        engine.submit()
        await engine.heard()
        await engine.say(Abort([1]))
        assert len(engine.failures) == 1

    play(scene)


def test_log_probabilities_go_to_their_requests_and_strangers_are_dropped(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        first, _ = engine.submit(scores=TokenScores(3, scores_prompt=True))
        second, _ = engine.submit(scores=TokenScores(1, scores_prompt=False))
        third, _ = engine.submit()
        await engine.step(scored=((1, 1), (99, 1), (99, 2)))
        await engine.step(
            (third, 0, Finish.NONE),
            (second, 0, Finish.NONE),
            (first, 0, Finish.LENGTH),
            scored=((1, 2), (1, 3), (2, 1), (3, 1), (77, 5)),
        )
        await engine.step((second, 1, Finish.LENGTH), scored=((1, 4), (2, 2)))
        assert first.scores is not None
        assert first.scores.prompt is not None
        assert first.scores.prompt["position"].tolist() == [0, 1, 2]
        assert first.take_scores()["position"].tolist() == [3]
        assert second.take_scores()["position"].tolist() == [1, 2]
        assert third.num_tokens == 1
        assert engine.failures == []

    play(scene)


def test_a_stop_string_ends_nothing_before_min_tokens(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit("a", min_tokens=2)
        for _ in range(2):
            await engine.step((generation, 0, Finish.NONE))
        reason_before = generation.finish_reason
        await engine.step((generation, 0, Finish.NONE))
        reasons = (reason_before, generation.finish_reason)
        assert (*reasons, generation.take()[0], generation.num_tokens) == (None, "stop", "aa", 3)

    play(scene)


def test_log_probabilities_behind_a_stop_string_are_not_the_client_s(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit("bc", scores=TokenScores(1, scores_prompt=False))
        rows = [(generation, token, Finish.NONE) for token in range(4)]
        await engine.step(*rows, scored=tuple((1, position) for position in range(1, 5)))
        assert generation.finish_reason == "stop"
        assert generation.take_scores()["position"].tolist() == [1, 2, 3]

    play(scene)


def test_cached_tokens_come_with_the_admission(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit()
        await engine.step((generation, 0, Finish.NONE), admitted=(Admitted(generation.request_id, 48),))
        assert generation.num_cached_tokens == 48
        await engine.step((generation, 0, Finish.NONE), admitted=(Admitted(generation.request_id, 5),))
        assert generation.num_cached_tokens == 48, "readmission after a preemption is no cache hit"

    play(scene)


def test_a_step_is_fed_as_a_whole_before_anything_is_written(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        log = Log()
        generations = [Generation(index, 1, Letters(), None, log) for index in range(3)]
        for generation in generations:
            engine.client.submit(generation, PROMPT, SamplingParams(max_tokens=10), 0, "")
        await engine.step(*((generation, 0, Finish.NONE) for generation in generations))
        assert log.calls_at_flush == [3]

    play(scene)


def test_the_parts_of_a_step_are_recorded_in_order(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        pairs = [engine.submit() for _ in range(2)]
        await engine.step(*((generation, 0, Finish.NONE) for generation, _ in pairs))
        assert engine.recorder.parts == [(Part.RECEIVE, 1, 2), (Part.DETOKENISE, 1, 2), (Part.SEND, 1, 2)]

    play(scene)


def test_one_that_has_waited_too_long_may_come_again_and_is_counted_by_itself(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        waiting, log = engine.submit()
        await engine.say(Expired(waiting.request_id, "it has waited"))
        assert isinstance(waiting.error, QueueTimeoutError) and log.ends == 1
        assert (waiting.error.status, waiting.error.code) == (503, "queue_timeout")
        assert (engine.counts["finished_timeout"][0], engine.counts["finished_error"][0]) == (1, 0)
        assert engine.client.num_live == engine.client.num_waiting == 0

    play(scene)


def test_who_gives_way_is_the_newest_of_the_lowest_priority_whose_response_has_not_begun(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        begun, low, lowest = Log(), Log(), Log()
        priorities = ((begun, 9), (begun, 9), (lowest, 5), (lowest, 5), (low, 4))
        generations = [Generation(0, 1, Letters(), None, log) for log, _ in priorities]
        for generation, (_, priority) in zip(generations, priorities, strict=True):
            engine.client.submit(generation, PROMPT, SamplingParams(max_tokens=10), priority, "")
        await engine.step((generations[0], 0, Finish.NONE), admitted=(Admitted(generations[0].request_id, 0),))
        behind = engine.client.last_waiting_behind
        assert (behind(4), behind(5), behind(3)) == (generations[3], None, generations[3])
        engine.client.fail(generations[3], TooManyRequestsError("full"))
        engine.client.abort([generations[2]])
        assert (behind(3), behind(4), engine.client.num_waiting) == (generations[4], None, 2)

    play(scene)


def test_stopping_fails_every_live_request_once(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        pairs = [engine.submit() for _ in range(3)]
        engine.client.fail_all(UnavailableError("stopping"))
        engine.client.fail_all(UnavailableError("stopping"))
        assert [log.ends for _, log in pairs] == [1, 1, 1]
        assert all(isinstance(generation.error, UnavailableError) for generation, _ in pairs)
        assert engine.client.num_live == 0

    play(scene)


def test_a_burst_of_messages_is_read_to_its_end(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit()
        await engine.heard()
        frame = Tokens(1, np.array([1], "<u8").tobytes(), np.array([0], "<i4").tobytes(), b"\0")
        await engine.say(*[frame] * 1000)
        assert generation.num_tokens == log.calls == 1000

    play(scene)


def test_another_coordinator_gets_what_lives_with_its_tokens_and_the_text_goes_on(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        first, _ = engine.submit()
        ended, _ = engine.submit()
        waiting, _ = engine.submit()
        admitted = tuple(Admitted(each.request_id, 0) for each in (first, ended))
        await engine.step((first, 0, Finish.NONE), (ended, 0, Finish.LENGTH), admitted=admitted)
        await engine.step((first, 1, Finish.NONE))
        engine.replace()
        again = await engine.heard()
        assert [message.request_id for message in again if isinstance(message, Submit)] == [
            first.request_id, waiting.request_id,
        ]  # fmt: skip
        assert isinstance(again[0], Submit) and isinstance(again[1], Submit)
        assert np.frombuffer(again[0].prompt_token_ids, "<i4").tolist() == [1, 0, 1]
        assert again[0].resumed == Resumed(2) and again[1].resumed is None
        assert again[0].arrival_ns == first.submitted_ns and again[1].arrival_ns == waiting.submitted_ns
        await engine.step((first, 2, Finish.LENGTH))
        assert (first.take()[0], first.finish_reason, first.num_tokens) == ("abc", "length", 3)

    play(scene)


def test_another_coordinator_is_told_who_may_be_what_kills_workers(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        stuck, gets_on, new = (engine.submit()[0] for _ in range(3))
        await engine.step((stuck, 0, Finish.NONE), admitted=(Admitted(stuck.request_id, 0),))
        ended = 99
        await engine.say(Crashed({stuck.request_id: 1, gets_on.request_id: 1, new.request_id: 2, ended: 1}))
        await engine.step((gets_on, 0, Finish.NONE), admitted=(Admitted(gets_on.request_id, 0),))
        for _ in range(2):
            engine.replace()
            again = [message for message in await engine.heard() if isinstance(message, Submit)]
            assert [message.num_crashes for message in again] == [1, 0, 2]

    play(scene)


def test_another_coordinator_is_told_how_much_of_a_prompt_is_scored(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        scores = TokenScores(1, scores_prompt=True)
        generation, _ = engine.submit(scores=scores)
        await engine.step(
            (generation, 0, Finish.NONE), admitted=(Admitted(generation.request_id, 0),),
            scored=((generation.request_id, 0), (generation.request_id, 1)),
        )  # fmt: skip
        engine.replace()
        (again,) = await engine.heard()
        assert isinstance(again, Submit) and again.resumed == Resumed(1, 1)

    play(scene)


def test_without_a_coordinator_a_request_is_told_to_come_back() -> None:
    async def scene() -> None:
        client = new_client(Notes(), print, np.zeros(1, REQUEST_COUNTS))
        with pytest.raises(UnavailableError):
            client.submit(Generation(0, 1, Letters(), None, Log()), PROMPT, SamplingParams(max_tokens=10), 0, "")
        assert client.num_live == 0

    asyncio.run(scene())
