from albireo.checkpoint import GenerationDefaults
from albireo.frontend.allowed_tokens import allowed_tokens_grammar
from albireo.frontend.sampling import ModelBounds
from albireo.messages import Grammar

BOUNDS = ModelBounds(100, 3000, (2, 7), GenerationDefaults())


def source(allowed: list[int]) -> str:
    grammar = allowed_tokens_grammar(allowed, BOUNDS)
    assert grammar == Grammar("lark", grammar.source if grammar else "", "allowed_token_ids")
    return grammar.source


def test_tokens_are_written_once_and_as_ranges() -> None:
    assert source([9, 5, 11, 10, 5]) == "start: <[5,9-11]>{100}"


def test_the_output_may_end_where_an_end_of_sequence_is_allowed() -> None:
    assert source([5, 2]) == "start: <[5]>*"
    assert source([7]) == 'start: ""'


def test_nothing_is_asked_for_by_null() -> None:
    assert allowed_tokens_grammar(None, BOUNDS) is None
