"""What the bench client is told: random prompts of one length, outputs of one length, greedy, streamed."""

from albireo.bench.outcome import RequestOutcome
from albireo.bench.settings import ServeBenchSettings

TIMEOUT_S = 300.0


def settings(
    url: str, tokenizer: str, requests: int, input_len: int, output_len: int, seed: int, warmups: int = 0
) -> ServeBenchSettings:
    """All requests at once. `tokenizer`: the model's folder. `seed`: of the prompts; one that comes twice would be
    answered from the prefix cache."""
    return ServeBenchSettings(
        base_url=url, endpoint="/v1/completions", model=None, tokenizer=tokenizer, prompt_format="ids",
        input_len=input_len, prefix_len=0, output_len=output_len, num_prompts=requests, num_warmups=warmups,
        request_rate=float("inf"), burstiness=1.0, max_concurrency=None, ignore_eos=True, temperature=0.0,
        top_p=None, top_k=None, min_p=None, extra_body={}, headers={}, seed=seed,
        percentile_metrics=("ttft", "tpot"), metric_percentiles=(50.0, 99.0), goodput={}, request_timeout_s=TIMEOUT_S,
        insecure=False, label=None, metadata={},
    )  # fmt: skip


def first_error(outcomes: list[RequestOutcome]) -> str | None:
    """What went wrong, in a line, if anything did."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    return f"{len(errors)} of {len(outcomes)} requests failed; the first: {errors[0]}" if errors else None
