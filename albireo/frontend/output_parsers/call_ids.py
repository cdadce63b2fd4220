"""The ids of tool calls. They come back with the results, and in some models' prompts."""

import secrets
import string
import uuid
from collections.abc import Callable
from typing import Final

NewCallId = Callable[[], str]

_ALPHANUMERIC: Final = string.ascii_letters + string.digits


def new_call_id() -> str:
    """As OpenAI's look."""
    return "call_" + uuid.uuid4().hex[:24]


def new_mistral_call_id() -> str:
    """Mistral's chat templates refuse any but nine letters and digits."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
