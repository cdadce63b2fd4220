import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from bench_fake_server import FakeServer, running
from bench_tokenizers import byte_level

from albireo.bench.cli import add_serve_arguments, run_serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with running(FakeServer(root=str(tmp_path))) as fake:
        yield fake


def bench(server: FakeServer, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    small = ["--base-url", server.url, "--num-prompts", "6", "--input-len", "12", "--output-len", "5"]
    return run_serve(parser.parse_args([*small, *flags]))


def saved(server: FakeServer, tmp_path: Path, *flags: str) -> tuple[int, dict[str, object]]:
    code = bench(server, "--save-result", "--result-dir", str(tmp_path), "--result-filename", "out.json", *flags)
    record: dict[str, object] = json.loads((tmp_path / "out.json").read_text())
    return code, record


def test_a_run_counts_what_the_server_sent_and_saves_everything(server: FakeServer, tmp_path: Path) -> None:
    code, record = saved(server, tmp_path, "--save-detailed", "--metadata", "note=x", "--goodput", "ttft:60000")
    assert code == 0
    assert (record["completed"], record["failed"]) == (6, 0)
    assert (record["total_input_tokens"], record["total_output_tokens"]) == (72, 30)
    assert record["total_cached_tokens"] == 12
    assert record["request_goodput"] == record["request_throughput"]
    assert record["model_id"] == "fake"
    gaps = record["itls"]
    assert isinstance(gaps, list)
    assert [len(of_one) for of_one in gaps] == [4] * 6
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for figure in ("mean", "median", "std", "p50", "p99"):
            assert f"{figure}_{metric}_ms" in record
    assert record["settings"]["metadata"] == {"note": "x"}  # type: ignore[index]
    assert record["machine"]["cores"] >= 1  # type: ignore[index]
    assert not any(word in str(record["remarks"]) for word in ("failed", "counted", "ended before", "empty"))


def test_prompts_go_out_as_ids_of_the_right_length_with_the_sampling_that_was_set(server: FakeServer) -> None:
    assert bench(server, "--temperature", "0.8", "--top-p", "0.95", "--extra-body", '{"min_tokens": 5}') == 0
    for body in server.bodies:
        assert isinstance(body["prompt"], list)
        assert len(body["prompt"]) == 12
        assert (body["temperature"], body["top_p"], body["min_tokens"]) == (0.8, 0.95, 5)
        assert (body["stream"], body["ignore_eos"], body["max_tokens"]) == (True, True, 5)
        assert "top_k" not in body


def test_prompts_may_go_out_as_text(server: FakeServer) -> None:
    assert bench(server, "--prompt-format", "text") == 0
    assert all(isinstance(body["prompt"], str) for body in server.bodies)


def test_a_chat_backend_sends_each_prompt_as_a_message(server: FakeServer, tmp_path: Path) -> None:
    flags = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--temperature", "0"]
    code, record = saved(server, tmp_path, *flags)
    assert (code, record["backend"], record["total_output_tokens"]) == (0, "openai-chat", 30)
    for body in server.bodies:
        (message,) = cast(list[dict[str, str]], body["messages"])
        assert message["role"] == "user"
        assert len(message["content"].split()) > 1
        assert (body["max_completion_tokens"], body["stream"], body["temperature"]) == (5, True, 0)
        assert not {"prompt", "max_tokens"} & body.keys()
    assert bench(server, "--backend", "openai-chat") == 0  # the endpoint goes with it


def test_no_more_requests_run_at_once_than_allowed(server: FakeServer, tmp_path: Path) -> None:
    _, record = saved(server, tmp_path, "--max-concurrency", "2")
    assert server.peak_active == 2
    assert record["max_concurrent_requests"] == 2
    assert server.connections <= 3  # one that asked for the model's name, used again


def test_warm_up_requests_are_not_measured_and_share_no_prompt(server: FakeServer, tmp_path: Path) -> None:
    _, record = saved(server, tmp_path, "--num-warmups", "3", "--prefix-len", "8")
    prefixes = [str(body["prompt"]).split(",")[:8] for body in server.bodies]
    assert len(prefixes) == 9
    assert record["completed"] == 6
    assert prefixes[0] == prefixes[2] != prefixes[3] == prefixes[8]


def test_a_failing_warm_up_ends_the_run_with_one_line(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.fail_every = 2
    assert bench(server, "--num-warmups", "2") == 1
    assert "1 of 2 warm-up requests failed; the first: HTTP 500" in capsys.readouterr().err
    assert len(server.bodies) == 2


def test_failures_are_counted_quoted_and_change_the_exit_code(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail_every = 3
    code, record = saved(server, tmp_path)
    assert code == 1
    assert (record["completed"], record["failed"]) == (4, 2)
    assert "2 of 6 requests failed; the first: HTTP 500" in capsys.readouterr().out
    assert "out of luck" in str(record["remarks"])


def test_a_stream_cut_in_the_middle_is_a_failure(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.hang_up_after = 2
    assert bench(server) == 1
    assert "closed the connection" in capsys.readouterr().out


def test_connections_that_the_server_closes_between_requests_do_no_harm(server: FakeServer) -> None:
    server.close_after_response = True
    assert bench(server, "--max-concurrency", "1") == 0
    assert len(server.bodies) == 6


def test_merged_tokens_and_a_missing_usage_are_told(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.tokens_per_chunk = 2
    assert bench(server) == 0
    assert "1.67 tokens on average" in capsys.readouterr().out
    server.send_usage = False
    assert bench(server) == 0
    told = capsys.readouterr().out
    assert "tokens are counted as chunks" in told
    assert "ended before" not in told


def test_a_request_that_takes_too_long_fails(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, "--request-timeout", "0.05", "--output-len", "100000", "--num-prompts", "1") == 1
    assert "no complete answer within 0.05 s" in capsys.readouterr().out


def test_requests_at_a_rate_all_arrive(server: FakeServer, tmp_path: Path) -> None:
    _, record = saved(server, tmp_path, "--request-rate", "200", "--burstiness", "0.5", "--save-detailed")
    assert record["completed"] == 6
    starts = record["start_times"]
    assert isinstance(starts, list)
    assert starts == sorted(starts)
    assert starts[-1] > 0


def test_infinities_are_saved_as_json_can_hold_them(server: FakeServer, tmp_path: Path) -> None:
    _, record = saved(server, tmp_path, "--burstiness", "inf")
    assert (record["request_rate"], record["burstiness"]) == ("inf", "inf")
    settings = record["settings"]
    assert isinstance(settings, dict)
    assert (settings["request_rate"], settings["burstiness"]) == ("inf", "inf")


def test_the_key_and_extra_headers_are_sent_and_not_saved(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(server, tmp_path, "--api-key", "s3cret", "--header", "X-Team=blue42")
    assert all("Authorization: Bearer s3cret" in head and "X-Team: blue42" in head for head in server.headers)
    text = (tmp_path / "out.json").read_text()
    assert "s3cret" not in text
    assert "blue42" not in text
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    bench(server)
    assert "Bearer from-env" in server.headers[-1]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--dataset-name", "sharegpt"], "--input-len is for --dataset-name random"),
        (["--dataset-path", "x"], "--dataset-path needs --dataset-name"),
        (["--plot", "picture.gif"], "--plot makes .png and .svg files"),
        (["--endpoint", "/v1/chat/completions"], "--endpoint /v1/chat/completions needs --backend openai-chat"),
        (["--backend", "openai-chat", "--endpoint", "/v1/completions"], "needs --backend openai, not openai-chat"),
        (["--backend", "openai-chat", "--prompt-format", "ids"], "--prompt-format ids needs --backend openai"),
        (["--base-url", "http+unix:"], "--base-url needs the socket's path"),
        (["--num-prompts", "0"], "--num-prompts"),
        (["--max-concurrency", "0"], "--max-concurrency"),
        (["--request-rate", "nan"], "--request-rate"),
        (["--goodput", "itl:5"], "--goodput"),
        (["--goodput", "ttft"], "--goodput"),
        (["--percentile-metrics", "ttft,speed"], "--percentile-metrics"),
        (["--metric-percentiles", "50,101"], "--metric-percentiles"),
        (["--extra-body", "[1]"], "--extra-body"),
        (["--header", "novalue"], "--header"),
        (["--base-url", "localhost:8000"], "--base-url"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_anything_is_sent(
    server: FakeServer, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, *flags) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
    assert server.headers == []


def test_a_server_that_is_not_there_is_one_line(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, "--base-url", "http://127.0.0.1:1") == 1
    assert "cannot reach http://127.0.0.1:1" in capsys.readouterr().err


def test_a_server_that_is_still_loading_is_one_line(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.ready = False
    assert bench(server) == 1
    assert capsys.readouterr().err.endswith("the server is not ready yet (HTTP 503 from /v1/models)\n")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, argparse; from albireo.bench.cli import add_serve_arguments as add; "
        "p = argparse.ArgumentParser(); add(p); p.format_help(); "
        "heavy = {'numpy', 'uvloop', 'tokenizers', 'rich', 'msgspec', 'torch', 'asyncio'} & set(sys.modules); "
        "print(*sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
