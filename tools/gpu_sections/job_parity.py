"""Are the served tokens transformers' own? For each family a float32 server must give its greedy tokens, and a bfloat16
one the logprobs of the same text, as near to float32 as transformers itself comes in bfloat16.

All prompts of a server are sent at once, so that they run in one batch. Servers run side by side: they are tiny.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from msgspec import Struct

from gpu_sections.job import Job
from gpu_sections.parity_reference import NEW_TOKENS, Greedy
from gpu_sections.servers import Server, ServerError, model_name, post

TOLERANCE = 2e-3
"""Of a float32 logprob; tokens nearer than this to the best one are as good."""
BF16_FACTOR = 1.5
"""Our mean difference may be so many times transformers' own."""
SERVER_FLAGS = ("--kv-cache-bytes", "128M", "--max-num-seqs", "16", "--disable-uvicorn-access-log")
CPU_SERVERS = 2
"""At once, where servers compute on the machine's own cores."""


class Agreement(Struct):
    """One family in float32."""

    equal: int = 0
    ties: int = 0
    wrong: list[str] = []
    largest: float = 0.0
    """Difference of the logprobs of tokens that are equal."""


Found = Agreement | dict[str, float]
"""In float32, or the differences in bfloat16."""


def main() -> None:
    job = Job.open()
    folder = Path(job.given.model) / "parity"
    folder.mkdir(parents=True, exist_ok=True)
    log = Path(job.options.out) / "log.txt"
    command = [sys.executable, "-m", "gpu_sections.parity_reference", job.options.device, str(folder)]
    with log.open("ab") as errors:
        reference = subprocess.Popen([*command, *job.options.families], stderr=errors, stdout=errors)
        try:
            wait_for(reference, folder / "ready")
            check_all(job, folder, reference)
        finally:
            if reference.poll() is None:
                reference.kill()
                reference.wait()


def wait_for(reference: subprocess.Popen[bytes], path: Path) -> None:
    """Raises SystemExit when transformers' side ends without it."""
    while not path.exists():
        if reference.poll() is not None and not path.exists():
            raise SystemExit(f"the reference in transformers ended with exit code {reference.returncode}")
        time.sleep(0.05)


def check_all(job: Job, folder: Path, reference: subprocess.Popen[bytes]) -> None:
    """Every family in float32, then every one in bfloat16."""
    turns = [(family, dtype) for dtype in ("float32", "bfloat16") for family in job.options.families]
    at_once = len(turns) if job.options.device == "cuda" else CPU_SERVERS
    with ThreadPoolExecutor(at_once) as pool:
        checks = [pool.submit(check, job, folder, family, dtype, reference) for family, dtype in turns]
        for (family, dtype), found in zip(turns, checks, strict=True):
            try:
                row(job, family, dtype, found.result())
            except (ServerError, OSError) as error:
                first, *rest = str(error).splitlines() or ["it said nothing"]
                job.row("parity", f"{family}, {dtype}", "failed", "", "NOT PASSED", first, *rest)


def check(job: Job, folder: Path, family: str, dtype: str, reference: subprocess.Popen[bytes]) -> Found:
    """Starts the server and asks it. Raises ServerError, OSError."""
    flags = ["--model", str(folder / family), "--device", job.options.device, "--dtype", dtype, *SERVER_FLAGS]
    if job.options.device == "cpu":
        flags += ["--cpu-threads", str(max(1, (os.cpu_count() or 1) // CPU_SERVERS))]
    job.say(f"parity: starting {family} in {dtype}")
    with Server(flags, Path(job.options.out) / "servers.txt", job.given.timeout_s) as server:
        wait_for(reference, folder / f"{family}.json")
        expected = msgspec.json.decode((folder / f"{family}.json").read_bytes(), type=list[Greedy])
        name = model_name(server.url)
        ask = greedy if dtype == "float32" else forced
        with ThreadPoolExecutor(len(expected)) as pool:
            answers = list(pool.map(lambda each: ask(server.url, name, each), expected))
    return agreement(expected, answers) if dtype == "float32" else differences(expected, answers)


Answer = tuple[list[int], list[float]]
"""Token ids and their logprobs."""
Ask = Callable[[str, str, Greedy], Answer]


def greedy(url: str, model: str, each: Greedy) -> Answer:
    body = {"model": model, "prompt": each.prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    choice = post(url, body | {"logprobs": 0, "return_token_ids": True})["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def forced(url: str, model: str, each: Greedy) -> Answer:
    """The whole text as a prompt; its first token has no logprob, and the one output token is none of it."""
    text = [*each.prompt, *each.tokens]
    body = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 0}
    choice = post(url, body | {"ignore_eos": True})["choices"][0]
    return text, choice["logprobs"]["token_logprobs"][1 : len(text)]


def agreement(expected: list[Greedy], answers: list[Answer]) -> Agreement:
    """Compares up to the first token that differs: there the texts part."""
    found = Agreement()
    for each, (tokens, scores) in zip(expected, answers, strict=True):
        pairs = zip(each.tokens, tokens, strict=False)
        same = next((at for at, (theirs, ours) in enumerate(pairs) if theirs != ours), min(len(tokens), NEW_TOKENS))
        gaps = [abs(ours - theirs) for ours, theirs in zip(scores[:same], each.logprobs[:same], strict=True)]
        found.largest = max([found.largest, *gaps])
        if tokens == each.tokens:
            found.equal += 1
        elif len(tokens) == NEW_TOKENS and max(each.best[same]) - each.best[same][tokens[same]] < TOLERANCE:
            found.ties += 1
        else:
            got = tokens[same : same + 3]
            found.wrong.append(
                f"prompt of {len(each.prompt)}: token {same} is {got} and should be {each.tokens[same : same + 3]}"
            )
    return found


def differences(expected: list[Greedy], answers: list[Answer]) -> dict[str, float]:
    """Of bfloat16 logprobs from float32's: ours and transformers' own, largest and mean."""
    ours = [abs(a - b) for each, (_, scores) in zip(expected, answers, strict=True)
            for a, b in zip(scores, each.forced, strict=True)]  # fmt: skip
    theirs = [abs(a - b) for each in expected for a, b in zip(each.forced_bf16, each.forced, strict=True)]
    means = {"mean": sum(ours) / len(ours), "their_mean": sum(theirs) / len(theirs)}
    return means | {"max": max(ours), "their_max": max(theirs)}


def row(job: Job, family: str, dtype: str, found: Found) -> None:
    job.detail(f"parity, {family}, {dtype}", found)
    if isinstance(found, Agreement):
        total = found.equal + found.ties + len(found.wrong)
        good = not found.wrong and found.largest < TOLERANCE
        value = f"{found.equal} of {total} texts equal, {found.ties} tied"
        against = f"logprobs off by {found.largest:.1e} at most ({TOLERANCE:g})"
    else:
        good = found["mean"] <= BF16_FACTOR * found["their_mean"]
        value = f"forced logprobs off by mean {found['mean']:.4f}, max {found['max']:.3f}"
        against = f"transformers bf16: mean {found['their_mean']:.4f}, max {found['their_max']:.3f}"
    notes = found.wrong[:4] if isinstance(found, Agreement) else []
    job.row("parity", f"{family}, {dtype}", value, against, "passed" if good else "NOT PASSED", *notes)


if __name__ == "__main__":
    main()
