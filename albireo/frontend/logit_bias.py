"""`logit_bias` as a client sends it (token ids as the keys of a JSON object) -> pairs for the engine."""

from albireo import limits
from albireo.errors import RequestError


def logit_bias(given: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """(token id, bias), one for each key. Raises RequestError that names the key."""
    return tuple((_token_id(key, vocab_size), _bias(key, bias)) for key, bias in given.items())


def _token_id(key: str, vocab_size: int) -> int:
    """Only the number's usual spelling counts: with "05" beside "5" a token would have two biases."""
    is_number = key.isascii() and key.isdigit() and (key == "0" or key[0] != "0")
    if not is_number or len(key) > len(str(vocab_size)) or int(key) >= vocab_size:
        field = _field(key)
        raise RequestError(f"{field} must be a token id, 0 or more and below the vocabulary size {vocab_size}", field)
    return int(key)


def _bias(key: str, bias: float) -> float:
    if not -limits.MAX_BIAS <= bias <= limits.MAX_BIAS:
        field = _field(key)
        raise RequestError(f"{field} must be at least {-limits.MAX_BIAS:g} and at most {limits.MAX_BIAS:g}", field)
    return bias


def _field(key: str) -> str:
    return "logit_bias." + key[: limits.MAX_ECHO_CHARS]
