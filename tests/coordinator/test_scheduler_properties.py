"""Random arrivals, aborts, EOS, block exhaustion, deaths of workers and coordinators in any order of planning,
executing and confirming."""

from typing import Any

from engine import Engine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from albireo.config import SchedulerConfig, SchedulingPolicy

SPECIAL = {"presence_penalty": 0.5, "logit_bias": ((3, 1.0), (9, -1.0)), "bad_words": ((5,),)}


class SchedulerMachine(RuleBasedStateMachine):
    """The real scheduler against the fake device, whose tokens show every mistake."""

    @initialize(
        run_ahead=st.sampled_from([0, 1, 2, 4]),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(6, 24),
        num_blocks=st.integers(10, 24),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        lateness=st.integers(0, 3),
        num_swap_blocks=st.sampled_from([0, 4, 12, 40]),
    )
    def start(
        self, run_ahead: int, max_num_seqs: int, budget: int, num_blocks: int, caching: bool, policy: SchedulingPolicy,
        lateness: int, num_swap_blocks: int,
    ) -> None:  # fmt: skip
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_model_len=40, block_size=4,
            run_ahead=run_ahead, policy=policy, enable_prefix_caching=caching, num_swap_blocks=num_swap_blocks,
        )  # fmt: skip
        self.engine = Engine(config, num_blocks)
        self.engine.device.lateness = lateness

    @rule(
        shared=st.integers(0, 20), own=st.lists(st.integers(0, 49), min_size=1, max_size=12),
        max_tokens=st.integers(1, 25), ignore_eos=st.booleans(), stop=st.sampled_from([(), (7,), (7, 9, 11)]),
        priority=st.integers(-2, 2), salt=st.sampled_from(["", "", "", "tenant"]),
        asks=st.sampled_from([{}, {}, {"logprobs": 2}, {"prompt_logprobs": 0}, {"logprobs": 0, "prompt_logprobs": 5}]),
        has_grammar=st.booleans(), sample_group=st.sampled_from([0, 0, 1, 2]),
        special=st.sampled_from([{}, {}, {"presence_penalty": 1.0}, {"bad_words": ((1, 2), (3,))}, SPECIAL]),
    )  # fmt: skip
    def submit(
        self, shared: int, own: list[int], max_tokens: int, ignore_eos: bool, stop: tuple[int, ...], priority: int,
        salt: str, asks: dict[str, Any], special: dict[str, Any], has_grammar: bool, sample_group: int,
    ) -> None:  # fmt: skip
        prompt = [*range(shared), *own]
        self.engine.submit(
            prompt,
            max_tokens,
            ignore_eos=ignore_eos,
            stop=stop,
            priority=priority,
            salt=salt,
            has_grammar=has_grammar,
            sample_group=sample_group,
            **asks,
            **special,
        )

    @rule(index=st.integers(0, 1000))
    def abort(self, index: int) -> None:
        live = [expected for expected in self.engine.requests.values() if not expected.finished]
        if live:
            self.engine.abort(live[index % len(live)])

    @rule(dice=st.integers(0, 3))
    def lose_devices(self, dice: int) -> None:
        if not dice:  # else nothing would come of anything
            self.engine.lose_devices()

    @rule(dice=st.integers(0, 3))
    def lose_coordinator(self, dice: int) -> None:
        if not dice:
            self.engine.lose_coordinator()

    @rule(times=st.integers(1, 5))
    def plan(self, times: int) -> None:
        for _ in range(times):
            self.engine.plan()

    @rule(times=st.integers(1, 5))
    def execute(self, times: int) -> None:
        for _ in range(times):
            self.engine.execute()

    @rule(times=st.integers(1, 5))
    def confirm(self, times: int) -> None:
        for _ in range(times):
            self.engine.confirm()

    @rule(times=st.integers(1, 20))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.engine.plan(), self.engine.execute(), self.engine.confirm()

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.run()
            self.engine.check_integrity()
            self.engine.check_results()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
