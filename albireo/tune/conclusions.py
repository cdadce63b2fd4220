"""What the figures say, in sentences: t_e and how sure it is, how good the fit is, which mechanism moves t_e."""

from albireo.tune.choice import Choice, choose_of, is_carried_by_all, value_of
from albireo.tune.figures import Ranged, TuneRecord
from albireo.tune.fit import MISS, StepModel, fit_steps
from albireo.tune.variants import AS_GIVEN, BOTH_OFF, GATHERED, NO_RUN_AHEAD

UNITS = {"goodput": "good requests/s", "throughput": "output tokens/s"}
_NAMES = {NO_RUN_AHEAD: "run-ahead", GATHERED: "distributed sampling"}
"""Of the mechanisms that a variant lacks."""


def model_of(record: TuneRecord, variant: str = AS_GIVEN) -> StepModel | None:
    steps = {degree: record.median_step(degree, variant) for degree in record.degrees(variant)}
    known = {degree: step for degree, step in steps.items() if step is not None}
    periods = {degree: step.period_us for degree, step in known.items()}
    return fit_steps(periods, {degree: step.collective_us for degree, step in known.items()})


def choice_sentences(record: TuneRecord) -> list[str]:
    """The first one names t_e."""
    unit = UNITS[record.settings.objective]
    found = []
    choice = choose_of(record)
    if choice is None:
        slo = " ".join(f"{name}:{limit:g}" for name, limit in record.settings.goodput.items())
        return [f"No t_e: no request met {slo} at any t." if slo and record.turns else "No t_e: nothing was measured."]
    best = "" if len(record.settings.loads) == 1 else ", each t at its best load"
    found.append(f"t_e = {choice.degree}: {_ranged(choice.value)} {unit}{best}; {_lead(choice)}.")
    if len(record.settings.loads) > 1:
        found += [_load_sentence(record, load) for load in record.settings.loads]
    if not record.settings.goodput:
        for load in record.settings.loads:
            if is_carried_by_all(record, load):
                found.append(
                    f"At rate {load} every t kept up with what was offered: throughput does not tell them apart. "
                    f"Raise --request-rate, or say with --goodput what a good answer is."
                )
    if not record.is_complete:
        found.append("The run was interrupted: these are the turns that had ended.")
    return found


def fit_sentences(record: TuneRecord, variant: str = AS_GIVEN) -> list[str]:
    batch = record.settings.fit_batch
    model = model_of(record, variant)
    if model is None:
        return ["No fit: it takes steps of two degrees at least."]
    parts = f"T(t) = {_us(model.scalable_us)}/t + {_us(model.non_scalable_us)}"
    if model.has_recorded_communication:
        parts += " + the recorded collectives"
        if model.bandwidth_us or model.latency_us:
            parts += f" (about {_us(model.bandwidth_us)} (t-1)/t + {_us(model.latency_us)} log2 t)"
    elif model.num_parameters > 2:
        parts += f" + {_us(model.latency_us)} log2 t"
    found = [f"{parts} microseconds, for {batch} rows of each replica."]
    points = len(model.measured_us)
    misses = ", ".join(f"t = {degree} by {residual:+.0%}" for degree, residual in model.misses.items())
    if model.is_exact and misses:
        found.append(
            f"{points} points and {model.num_parameters} parameters could be fitted exactly; that it misses {misses} "
            "says that a part would have to be negative: the step is not what the model says."
        )
    elif model.is_exact:
        found.append(
            f"{points} points and {model.num_parameters} parameters: the fit is exact by construction and proves "
            "nothing."
        )
    elif not model.misses:
        found.append(f"The fit is within {MISS:.0%} at every t ({points} points, {model.num_parameters} parameters).")
    else:
        found.append(f"The fit misses {misses}: there the step is not what the model says.")
    if not model.has_recorded_communication and max(model.measured_us) > 1:
        unknown = "" if model.num_parameters > 2 else " and communication as a whole"
        found.append(
            "Collectives are not in the flight record of this device: what they take by bandwidth, which goes with "
            f"(t-1)/t,{unknown} is within the other parts."
        )
    return found


def ablation_sentences(record: TuneRecord) -> list[str]:
    """Empty where there was no ablation."""
    if len(record.variants) < 2:
        return []
    chosen = {variant: choose_of(record, None, variant) for variant in record.variants}
    given = chosen.get(AS_GIVEN)
    found = [f"{variant}: {_outcome(record, variant, choice)}." for variant, choice in chosen.items()]
    if given is None:
        return found
    movers = []
    for variant, name in _NAMES.items():
        choice = chosen.get(variant)
        if choice is not None and choice.degree != given.degree:
            movers.append(name)
            doubt = _doubt(record, variant, choice, given)
            found.append(f"Without {name} t_e is {choice.degree}, with it {given.degree}{doubt}.")
    both = chosen.get(BOTH_OFF)
    if both is not None:
        found.append(_both(record, both, given, movers))
    return found


def _both(record: TuneRecord, both: Choice, given: Choice, movers: list[str]) -> str:
    gain = given.value.median / both.value.median - 1
    if both.degree == given.degree:
        if movers:
            return f"Without both t_e is {both.degree} again: they move it in opposite directions, or it is noise."
        return f"With and without the mechanisms t_e is {given.degree}; what they bring there is {gain:+.1%}."
    by = " and ".join(movers) or "the two together, neither alone"
    stay = value_of(record, both.degree, None)
    rest = "" if stay is None else (
        f", of which staying at t = {both.degree} would bring {stay.median / both.value.median - 1:+.1%}"
    )  # fmt: skip
    return (
        f"Together they move t_e from {both.degree} to {given.degree}: {by}{_doubt(record, BOTH_OFF, both, given)}; "
        f"the best value changes by {gain:+.1%}{rest}."
    )


def _outcome(record: TuneRecord, variant: str, choice: Choice | None) -> str:
    if choice is None:
        return "no t_e"
    model = model_of(record, variant)
    fitted = "" if model is None else f"; the step's non-scalable part is {_us(model.non_scalable_us)} microseconds"
    return f"t_e = {choice.degree}, {_ranged(choice.value)} {UNITS[record.settings.objective]}{fitted}"


def _load_sentence(record: TuneRecord, load: str) -> str:
    choice = choose_of(record, load)
    if choice is None:
        return f"Rate {load}: no t_e."
    return f"Rate {load}: t_e = {choice.degree}, {_ranged(choice.value)}; {_lead(choice)}."


def _lead(choice: Choice) -> str:
    if choice.next_degree is None or choice.next_value is None:
        return "no other t has a figure"
    if choice.is_tie:
        return f"t = {choice.next_degree} is as good, and the smaller one is named"
    against = f"t = {choice.next_degree} ({_ranged(choice.next_value)})"
    lead = f"{choice.margin:.1%} ahead of {against}" if choice.margin is not None else f"ahead of {against}"
    if choice.overlaps is None:
        return f"{lead}; one round has no range, so that nothing says how sure this is"
    return f"{lead}, and their ranges " + ("overlap: the rounds do not tell them apart" if choice.overlaps else
                                           "do not overlap")  # fmt: skip


def _doubt(record: TuneRecord, variant: str, there: Choice, given: Choice) -> str:
    """Whether a move between the two may be noise: whether the rounds tell the two degrees apart in both variants."""
    if min(there.rounds, given.rounds) < 2:
        return " (one round: it may be noise)"
    beaten = value_of(record, given.degree, None, variant), value_of(record, there.degree, None)
    is_apart = all(
        loser is None or winner.value.low > loser.high for winner, loser in zip((there, given), beaten, strict=True)
    )
    return "" if is_apart else " (within the rounds' ranges)"


def _ranged(value: Ranged) -> str:
    low, high = number(value.low), number(value.high)
    return number(value.median) if low == high else f"{number(value.median)} ({low}–{high})"


def number(value: float) -> str:
    """Three digits or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _us(value: float) -> str:
    return number(value)
