"""guidellm against completions and chat, with made prompts."""

import json
import tempfile
from pathlib import Path

from command import run
from steps import Check

check = Check()


def benchmark(request_format: str) -> str:
    with tempfile.TemporaryDirectory() as name:
        run(
            "guidellm", "run", "--disable-console",
            "--backend", f"kind=openai_http,target={check.base_url},model={check.model},"
            f"request_format={request_format}",
            "--tokenizer", f"kind=hf_auto,model={check.tokenizer}",
            "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=16",
            "--data", "kind=synthetic_text,prompt_tokens=48,output_tokens=24",
            "--output", f"kind=json,path={name}/report.json",
        )  # fmt: skip
        report = json.loads((Path(name) / "report.json").read_text())
    (run_of,) = report["benchmarks"]
    metrics = run_of["metrics"]
    totals = metrics["request_totals"]
    assert totals["successful"] >= 16 and not totals["errored"], totals
    rate = metrics["output_tokens_per_second"]["successful"]["mean"]
    return f"{totals['successful']} requests, {rate:.0f} output tokens/s"


check.step("run, completions", lambda: benchmark("/v1/completions"))
check.step("run, chat", lambda: benchmark("/v1/chat/completions"))
check.end()
