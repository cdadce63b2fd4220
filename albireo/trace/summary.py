"""What `albireo-run trace` prints: one table, and the figures that it stands for."""

from albireo.trace.overlap import Overlap
from albireo.trace.text_table import aligned

_HEADER = ("part", "us/step", "hidden", "exposed", "of step", "p50 us", "p99 us")


def summary(account: Overlap, first: int, last: int) -> str:
    """Lines for a terminal; `first` and `last` are the steps' numbers."""
    period, gap, limits = account.period, account.gap, account.non_scalable
    bounds = ", ".join(f"{bound:.2f} for {ranks} ranks" for ranks, bound in limits.speed_up_bounds.items())
    rows = [
        (
            f"{part.process} {part.part}",
            *(f"{time_us:.1f}" for time_us in (part.per_step_us, part.hidden_us, part.exposed_us)),
            f"{part.share:.1%}",
            *(f"{time_us:.1f}" for time_us in (part.p50_us, part.p99_us)),
        )
        for part in account.parts
    ]
    return "\n".join(
        [
            f"steps {first} to {last}: {account.num_steps} with a known period; {1e6 / period.mean_us:.1f} steps/s",
            f"step: p50 {period.p50_us:.0f} us, p99 {period.p99_us:.0f} us",
            f"exposed: {account.gap_share:.2%} of the time; per step mean {gap.mean_us:.0f} us, p50 {gap.p50_us:.0f}, "
            f"p99 {gap.p99_us:.0f}, p99.9 {gap.p999_us:.0f}, max {gap.max_us:.0f}; "
            f"{account.nobody_us:.0f} us of it nobody was busy",
            f"does not shrink with more ranks (exposed and collectives): {limits.fraction:.2%} of a step of one rank; "
            f"{limits.fraction_sampling_repeated:.2%} if every rank samples all rows",
            f"bound of the speed-up by the former: {bounds}",
            "",
            aligned(_HEADER, rows),
        ]
    )
