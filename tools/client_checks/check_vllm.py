"""`vllm bench serve --backend openai`, from a CPU build of vLLM."""

import json
import tempfile
from pathlib import Path

from command import run
from steps import Check

check = Check()


def bench(backend: str, endpoint: str) -> str:
    with tempfile.TemporaryDirectory() as name:
        run(
            "vllm", "bench", "serve", "--backend", backend, "--endpoint", endpoint, "--base-url", check.base_url,
            "--model", check.model, "--tokenizer", check.tokenizer, "--dataset-name", "random",
            "--random-input-len", "48", "--random-output-len", "24", "--num-prompts", "16", "--ignore-eos",
            "--save-result", "--result-dir", name, "--result-filename", "result.json",
        )  # fmt: skip
        result = json.loads((Path(name) / "result.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (16, 16 * 24), result["completed"]
    ttft, itl = result["mean_ttft_ms"], result["mean_itl_ms"]
    return f"16 requests, TTFT {ttft:.0f} ms, ITL {itl:.1f} ms, {result['output_throughput']:.0f} output tokens/s"


check.step("bench serve, openai", lambda: bench("openai", "/v1/completions"))
check.step("bench serve, openai-chat", lambda: bench("openai-chat", "/v1/chat/completions"))
check.end()
