from pathlib import Path

import pytest
from bench_tokenizers import KINDS
from tokenizers import Tokenizer, models

from albireo.bench.prompts import PromptError, PromptMaker, load_tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [2, 3, 17, 300])
def test_a_prompt_has_exactly_the_tokens_asked_for_as_text_and_as_ids(kind: str, length: int) -> None:
    tokenizer = KINDS[kind]()
    for prompt in PromptMaker(tokenizer, seed=3).make(5, length, prefix_len=0):
        assert len(prompt.ids) == length
        assert tokenizer.encode(prompt.text).ids == prompt.ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prefix_comes_before_the_tokens_of_each_prompts_own(kind: str) -> None:
    prompts = PromptMaker(KINDS[kind](), seed=3).make(6, 16, prefix_len=40)
    assert {len(prompt.ids) for prompt in prompts} == {56}
    assert len({tuple(prompt.ids[:40]) for prompt in prompts}) == 1
    assert len({tuple(prompt.ids[40:]) for prompt in prompts}) == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [9, 511, 512, 513, 1400])
def test_prompts_of_the_same_blocks_are_the_same_as_far_as_these_go(kind: str, length: int) -> None:
    maker = PromptMaker(KINDS[kind](), seed=3)
    one, other = maker.of_blocks([5, 6], length), maker.of_blocks([5, 6], length)
    assert len(one.ids) == len(other.ids) == length
    assert one.ids[:1024] == other.ids[:1024]
    assert (one.ids == other.ids) == (length <= 1024)


def test_a_prompt_of_blocks_may_be_as_short_as_any() -> None:
    maker = PromptMaker(KINDS["byte-level"](), seed=3)
    assert [len(maker.of_blocks([5], length).ids) for length in range(1, 9)] == list(range(1, 9))


def test_prompts_depend_on_the_seed_alone() -> None:
    tokenizer = KINDS["byte-level"]()
    first, again, other = (PromptMaker(tokenizer, seed).make(3, 20, prefix_len=5) for seed in (1, 1, 2))
    assert first == again
    assert not {p.text for p in first} & {p.text for p in other}


def test_no_prompt_is_like_another() -> None:
    prompts = PromptMaker(KINDS["byte-level"](), seed=0).make(100, 16, prefix_len=0)
    assert len({prompt.text for prompt in prompts}) == 100


def test_a_tokenizer_without_words_is_refused() -> None:
    letters = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    with pytest.raises(PromptError, match="too few words"):
        PromptMaker(letters, seed=0)


def test_a_length_that_cannot_be_made_is_refused() -> None:
    maker = PromptMaker(KINDS["byte-level with BOS"](), seed=0)
    with pytest.raises(PromptError, match="exactly 0 tokens"):
        maker.make(1, 0, prefix_len=0)


def test_a_tokenizer_is_found_in_a_folder_or_as_a_file(tmp_path: Path) -> None:
    KINDS["byte-level"]().save(str(tmp_path / "tokenizer.json"))
    assert (
        load_tokenizer(str(tmp_path)).get_vocab_size()
        == load_tokenizer(str(tmp_path / "tokenizer.json")).get_vocab_size()
    )


def test_a_broken_tokenizer_file_is_one_line_that_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(PromptError, match="--tokenizer") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
