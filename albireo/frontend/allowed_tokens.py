"""`allowed_token_ids`: the tokens that the output may have -> a grammar of them, masked as any other."""

from collections.abc import Iterator, Sequence

from albireo.errors import RequestError
from albireo.frontend.sampling import ModelBounds
from albireo.messages import Grammar

FIELD = "allowed_token_ids"


def allowed_tokens_grammar(allowed: Sequence[int] | None, bounds: ModelBounds) -> Grammar | None:
    """As many of them as the output has tokens. It ends by itself where an end-of-sequence token is one of them (by any
    of the model's: a grammar does not tell them apart), and otherwise never: the grammar wants as many as the context
    holds. Raises RequestError."""
    if allowed is None:
        return None
    for index, token in enumerate(allowed):
        if token >= bounds.vocab_size:
            field = f"{FIELD}[{index}]"
            raise RequestError(f"{field} must be below the vocabulary size {bounds.vocab_size}", field=field)
    tokens = sorted({*allowed} - {*bounds.eos_token_ids})
    if not tokens:
        return Grammar("lark", 'start: ""', FIELD)
    may_end = not {*allowed}.isdisjoint(bounds.eos_token_ids)
    times = "*" if may_end else f"{{{bounds.context_tokens}}}"
    return Grammar("lark", f"start: <[{','.join(_ranges(tokens))}]>{times}", FIELD)


def _ranges(tokens: Sequence[int]) -> Iterator[str]:
    """`5`, `7-9`: ascending tokens as llguidance's Lark writes them."""
    first = last = tokens[0]
    for token in [*tokens[1:], -1]:
        if token == last + 1:
            last = token
            continue
        yield str(first) if first == last else f"{first}-{last}"
        first = last = token
