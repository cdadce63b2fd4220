"""The throughput run by transformers' continuous batching: the same shape, random bf16 weights made on the device."""

import random
import time
import traceback
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from gpu_sections.job import Job
from gpu_sections.model import llama_config

Model = Any
"""transformers' types do not say what can be called."""

ATTENTIONS = ("sdpa", "eager")
"""Tried one after the other; transformers turns them into their paged forms. Flash attention is another package."""


def main() -> None:
    job = Job.open()
    workload, count = job.options.workload, job.options.workload.peer_requests
    job.say(f"transformers {transformers.__version__}: making the {job.options.model_shape} model")
    model = make_model(job)
    problems = []
    for attention in ATTENTIONS:
        try:
            rate, details = measure(job, model, attention)
        except Exception as error:  # transformers' own failure is a result
            problems.append(f"{attention}: {type(error).__name__}: {str(error).splitlines()[:1]}")
            traceback.print_exc()
            continue
        job.detail("transformers continuous batching", details)
        ours = job.given.facts.get(f"throughput {count}")
        what = f"transformers, {count} requests, {workload.input_len} in, {workload.output_len} out, {attention}"
        scaled = f" ({count} of {workload.requests} requests: its time)" if count < workload.requests else ""
        against = f"Albireo {ours:,.0f} tok/s" if ours else ""
        verdict = f"Albireo is {ours / rate:.2f} x" + scaled if ours else scaled.strip()
        job.row("throughput", what, f"{rate:,.0f} tok/s", against, verdict)
        return
    job.row("throughput", "transformers", "does not run", "", "", *problems)


def make_model(job: Job) -> Model:
    shape = llama_config(job.options.model_shape)
    fields = {name: value for name, value in shape.items() if name not in ("architectures", "model_type", "rope_theta")}
    config = LlamaConfig(**fields, rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]})
    with torch.device(job.options.device):
        model: Model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    return model.eval()


def measure(job: Job, model: Model, attention: str) -> tuple[float, dict[str, object]]:
    """Output tokens per second from the first request's arrival to the last one's end, without its own warm-up."""
    workload, count = job.options.workload, job.options.workload.peer_requests
    rng = random.Random(5)
    vocabulary = range(1, model.config.vocab_size)
    prompts = [rng.choices(vocabulary, k=workload.input_len) for _ in range(count)]
    model.set_attn_implementation(attention)
    generation = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=workload.output_len, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    job.say(f"transformers: {count} requests with {attention} attention")
    begin = time.perf_counter()
    outputs = list(model.generate_batch(prompts, generation_config=generation).values())
    wall_s = time.perf_counter() - begin
    errors = [output.error for output in outputs if output.error]
    tokens = sum(len(output.generated_tokens) for output in outputs)
    if errors or tokens < count * workload.output_len:
        raise RuntimeError(f"{tokens} of {count * workload.output_len} tokens came; {errors[:1]}")
    begins = [output.created_time for output in outputs]
    ends = [output.lifespan[1] for output in outputs if output.lifespan[1] > 0]
    took_s = max(ends) - min(begins) if ends else wall_s
    details = {"attention": attention, "tokens": tokens, "seconds": took_s, "wall_s": wall_s}
    return tokens / took_s, details


if __name__ == "__main__":
    main()
