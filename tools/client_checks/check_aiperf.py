"""aiperf against chat and completions, streamed, with made prompts."""

import json
import tempfile
from pathlib import Path

from command import run
from steps import Check

check = Check()


def profile(endpoint_type: str) -> str:
    with tempfile.TemporaryDirectory() as name:
        run(
            "aiperf", "profile", "--model", check.model, "--url", check.base_url, "--endpoint-type", endpoint_type,
            "--streaming", "--tokenizer", check.tokenizer, "--concurrency", "4", "--request-count", "16",
            "--prompt-input-tokens-mean", "48", "--output-tokens-mean", "24", "--extra-inputs", "ignore_eos:true",
            "--use-server-token-count", "--ui", "none", "--no-gpu-telemetry", "--output-artifact-dir", name,
            offline=False,  # it would look for a folder's tokenizer in the hub's cache
        )  # fmt: skip
        (path,) = Path(name).glob("**/profile_export_aiperf.json")
        report = json.loads(path.read_text())
    assert report["request_count"]["avg"] == 16, report["request_count"]
    ttft, rate = report["time_to_first_token"]["avg"], report["output_token_throughput"]["avg"]
    return f"16 requests, TTFT {ttft:.0f} ms, {rate:.0f} output tokens/s"


for endpoint in ("chat", "completions"):
    check.step(f"profile, {endpoint}", lambda endpoint=endpoint: profile(endpoint))
check.end()
