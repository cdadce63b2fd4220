"""Raw prompts: what transformers encodes, with the post-processor's BOS, and control tokens only as text."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizer_files
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from albireo.errors import RequestError, StartupError
from albireo.frontend import tokenizer as tokenizer_module
from albireo.frontend.tokenizer import load_tokenizer_config, special_tokens

KINDS = {
    "byte-level": tokenizer_files.byte_level,
    "byte-level-bos": tokenizer_files.byte_level_with_bos,
    "sentencepiece": tokenizer_files.sentencepiece,
}
TEXTS = ["Hello world", " two  spaces\n\n", "你好 😀", "a <| b |> <s", "é\u0301▁\x00\ufffd", "<0x41>"]


def load(folder: Path, eos: tuple[int, ...] = (), max_tokens: int = 1000) -> tokenizer_module.Tokenizer:
    return tokenizer_module.Tokenizer(folder, eos, "", max_tokens)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_files.write(tmp_path_factory.mktemp(request.param), KINDS[request.param]())


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_encodes_as_transformers_does_it(folder: Path, text: str) -> None:
    from transformers import AutoTokenizer

    assert load(folder).encode_prompt(text, "prompt") == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|endoftext|>", "</s>", "<s>", "x", " ", "<", "|>", "你"])))
def test_what_looks_like_a_control_token_is_text(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    for kind, build in KINDS.items():
        folder = tmp_path_factory.getbasetemp() / kind
        if not folder.exists():
            tokenizer_files.write(folder, build())
        model = load(folder)
        ids = model.encode_prompt("x" + "".join(parts), "prompt")
        bos = ids[:1] if kind != "byte-level" else []
        assert model.control.ids.isdisjoint(ids[len(bos) :])
        decoded = model.backend.decode(ids[len(bos) :], skip_special_tokens=False)
        assert decoded == "x" + "".join(parts)


def test_without_special_tokens_a_prompt_has_none_typed_or_not_and_the_same_bound(folder: Path) -> None:
    text = "Hello <s>world</s><|im_end|>"
    ids = load(folder).encode_prompt(text, "prompt", add_special_tokens=False)
    assert load(folder).control.ids.isdisjoint(ids)
    with pytest.raises(RequestError, match="more than the context can hold"):
        load(folder, max_tokens=2).encode_prompt(text * 100, "prompt", add_special_tokens=False)


def test_a_bos_that_only_the_config_asks_for_is_put_first(tmp_path: Path) -> None:
    config: Any = {"add_bos_token": True, "bos_token": {"content": "<|endoftext|>", "special": True}}
    plain = load(tokenizer_files.write(tmp_path / "plain", tokenizer_files.byte_level()))
    asked = load(tokenizer_files.write(tmp_path / "asked", tokenizer_files.byte_level(), **config))
    both = load(tokenizer_files.write(tmp_path / "both", tokenizer_files.byte_level_with_bos(), **config))
    ids = plain.encode_prompt("Hello", "prompt")
    assert asked.encode_prompt("Hello", "prompt") == both.encode_prompt("Hello", "prompt") == [0, *ids]


def test_a_token_that_a_normaliser_makes_of_other_letters_is_text_too(tmp_path: Path) -> None:
    backend = tokenizer_files.byte_level()
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<fim>", normalized=True)])
    fim = backend.token_to_id("<fim>")
    assert fim in backend.encode("a＜fim＞b").ids
    model = load(tokenizer_files.write(tmp_path, backend))
    assert fim not in model.encode_prompt("a＜fim＞b", "prompt")
    marked = model.control.cut("a＜fim＞b", "\ufdd0", by_model=False)
    assert fim not in model.encode_chat(f"<fim>{marked}<fim>", "\ufdd0", "messages")[1:-1]
    assert model.encode_chat(f"<fim>{marked}<fim>", "\ufdd0", "messages").count(fim) == 2


def test_an_eos_token_is_a_control_token_though_nothing_calls_it_special(tmp_path: Path) -> None:
    folder = tokenizer_files.write(tmp_path, tokenizer_files.byte_level())
    eos = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("</think>")
    assert eos in load(folder).encode_prompt("a</think>b", "prompt")
    assert eos not in load(folder, eos=(eos,)).encode_prompt("a</think>b", "prompt")


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tokenizer_files.write(tmp_path, tokenizer_files.byte_level()), max_tokens=10)
    longest = max(map(len, model.backend.get_vocab()))
    assert model.encode_prompt("x" * 10 * longest, "prompt")
    monkeypatch.setattr(model, "backend", None)
    with pytest.raises(RequestError, match="more than the context can hold"):
        model.encode_prompt("x" * (10 * longest + 1), "prompt")


def test_truncation_and_padding_saved_with_a_tokenizer_are_switched_off(tmp_path: Path) -> None:
    backend = tokenizer_files.byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    ids = load(tokenizer_files.write(tmp_path, backend)).encode_prompt("Hello world, how are you", "prompt")
    assert 3 < len(ids) < 50


def test_special_tokens_are_strings_or_objects(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "additional": ["x"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert special_tokens(load_tokenizer_config(tmp_path)) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(StartupError, match="JSON object"):
        load_tokenizer_config(tmp_path)
