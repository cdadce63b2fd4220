"""The scheduler's properties where blocks are few and there is swap space: most runs swap, in any order of events."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from test_scheduler_properties import SchedulerMachine


class SwapMachine(SchedulerMachine):
    """Begins with sequences that cannot all stay."""

    start = None  # type: ignore[assignment]  # not as the other begins

    @initialize(
        run_ahead=st.sampled_from([0, 2, 4]),
        num_blocks=st.integers(10, 13),
        caching=st.sampled_from([False, False, True]),
        policy=st.sampled_from(["fcfs", "priority"]),
        lateness=st.integers(0, 3),
        num_swap_blocks=st.sampled_from([6, 12, 40]),
        lengths=st.lists(st.integers(4, 14), min_size=3, max_size=6),
        has_grammar=st.booleans(),
        group=st.sampled_from([0, 0, 3]),
    )
    def start_crowded(self, lengths: list[int], has_grammar: bool, group: int, **settings: object) -> None:
        super().start(max_num_seqs=5, budget=24, **settings)
        for length in lengths:
            self.engine.submit(
                list(range(length)), 24, ignore_eos=length % 2 == 0, has_grammar=has_grammar, sample_group=group,
                frontend=0 if group else None,
            )  # fmt: skip


TestSwapping = SwapMachine.TestCase
TestSwapping.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
