"""The bundled model's tokenizer, as the grammar process uses it, and a walk along its masks."""

import json
import random

import llguidance
import numpy as np
import numpy.typing as npt

from albireo.grammar.compiler import Compiler
from albireo.serve import DEMO_MODEL

CONFIG = json.loads((DEMO_MODEL / "config.json").read_text())
VOCAB_SIZE: int = CONFIG["vocab_size"]
EOS: list[int] = np.atleast_1d(CONFIG["eos_token_id"]).tolist()


def compiler() -> Compiler:
    return Compiler(str(DEMO_MODEL), VOCAB_SIZE, EOS)


def allowed(mask: npt.NDArray[np.int32]) -> list[int]:
    """Ids of the tokens in a mask's words."""
    ids: list[int] = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    return ids


def may_follow(matcher: llguidance.LLMatcher) -> list[int]:
    mask = np.zeros(-(-VOCAB_SIZE // 32), np.int32)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return allowed(mask)


def random_text(tokenizer: llguidance.LLTokenizer, matcher: llguidance.LLMatcher, seed: int) -> str:
    """Any text that the grammar allows, to its end."""
    random_, ids = random.Random(seed), []
    while (token := random_.choice(may_follow(matcher))) not in EOS:
        assert matcher.consume_token(token)
        ids.append(token)
    return tokenizer.decode_str(ids)
