"""Prompts from files, as `bench serve` sends them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_fake_server import FakeServer, running
from bench_tokenizers import byte_level

from albireo.cli import build_parser, run_bench

FLAGS = ["bench", "serve", "--prompt-format", "text"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with running(FakeServer(root=str(tmp_path))) as fake:
        yield fake


def bench(server: FakeServer, *flags: str) -> int:
    return run_bench(build_parser().parse_args([*FLAGS, "--base-url", server.url, *flags]), [])


def tokens(text: str) -> int:
    return len(byte_level().encode(text).ids)


def sharegpt(folder: Path, *turns: tuple[str, ...]) -> str:
    file = folder / "sharegpt.json"
    speakers = ["human", "gpt"] * 2
    data = [
        {"id": str(i), "conversations": [{"from": s, "value": t} for s, t in zip(speakers, texts, strict=False)]}
        for i, texts in enumerate(turns)
    ]
    file.write_text(json.dumps(data))
    return str(file)


def custom(folder: Path, *lines: dict[str, object]) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return str(file)


def test_sharegpt_sends_first_turns_and_asks_for_as_much_as_was_answered(server: FakeServer, tmp_path: Path) -> None:
    answer = "seven wizards watch from a distant hill"
    file = sharegpt(tmp_path, ("why do wizards wonder", answer, "thanks"), ("what is a fox and a dog", answer))
    assert bench(server, "--dataset-name", "sharegpt", "--dataset-path", file, "--num-prompts", "2") == 0
    assert {str(body["prompt"]) for body in server.bodies} == {"why do wizards wonder", "what is a fox and a dog"}
    assert {body["max_tokens"] for body in server.bodies} == {tokens(answer)}
    assert not any("ignore_eos" in body for body in server.bodies)


def test_sharegpt_leaves_out_what_is_too_short_or_too_long(server: FakeServer, tmp_path: Path) -> None:
    good = ("many small words make a vocabulary", "large enough for random prompts")
    long = "the quick brown fox " * 300
    turns = [good, ("why", good[1]), (good[0], "no"), (long, good[1]), (good[0] + " alone",), (good[0], long * 2)]
    file = sharegpt(tmp_path, *turns)
    assert bench(server, "--dataset-name", "sharegpt", "--dataset-path", file, "--num-prompts", "1") == 0
    assert [body["prompt"] for body in server.bodies] == [good[0]]
    server.bodies.clear()
    fixed = ["--dataset-name", "sharegpt", "--dataset-path", file, "--num-prompts", "3", "--output-len", "5"]
    assert bench(server, *fixed) == 0
    assert [(body["prompt"], body["max_tokens"]) for body in server.bodies] == [(good[0], 5)] * 3


def test_custom_lines_say_how_long_their_answers_are(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: dict[str, dict[str, object]] = {
        "one": {"output_tokens": 3},
        "two": {"output_len": 4, "more": [1]},
        "three": {},
    }
    file = custom(tmp_path, *({"prompt": prompt, **rest} for prompt, rest in lines.items()))
    assert bench(server, "--dataset-name", "custom", "--dataset-path", file, "--num-prompts", "3") == 0
    lengths = {str(body["prompt"]): body["max_tokens"] for body in server.bodies}
    assert lengths == {"one": 3, "two": 4, "three": 128}
    told = capsys.readouterr().out
    assert "ended before" not in told
    assert "sent several times" not in told


def test_a_dataset_that_is_too_small_is_sent_again_and_said(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = custom(tmp_path, {"prompt": "one", "output_len": 2}, {"prompt": "two", "output_len": 2})
    flags = ["--dataset-name", "custom", "--dataset-path", file, "--num-prompts", "5", "--num-warmups", "1"]
    assert bench(server, *flags) == 0
    assert len(server.bodies) == 6
    assert "2 prompts that can be used: some were sent several times" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("content", ["", "{", '[{"conversations": []}]', '{"prompt": 5}', '{"text": "x"}'])
@pytest.mark.parametrize("name", ["sharegpt", "custom"])
def test_a_file_of_another_kind_or_without_prompts_is_one_line(
    server: FakeServer, tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data"
    file.write_text(content)
    assert bench(server, "--dataset-name", name, "--dataset-path", str(file), "--num-prompts", "1") == 1
    error = capsys.readouterr().err
    assert str(file) in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, "--dataset-name", "custom", "--dataset-path", "does/not/exist") == 1
    assert "cannot read --dataset-path does/not/exist: No such file" in capsys.readouterr().err
