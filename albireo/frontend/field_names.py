"""Errors that are found in a chat, in the words of a client whose request had other names for the fields."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from albireo.errors import RequestError
from albireo.frontend.requests import ChatMessage

Names = Mapping[re.Pattern[str], str]
"""How a field's path in a chat begins, and what stands there in another API. The first that matches counts."""

_ARGUMENTS: Final = re.compile(r"messages\[(\d+)\]\.tool_calls\[(\d+)\]\.function\.arguments")


def rename_field(error: RequestError, names: Names, messages: Sequence[ChatMessage], arguments: Sequence[str]) -> None:
    """Puts the field's name in the client's request into an error of the chat that it became, and into its message.

    `messages` are the chat's. `arguments`: the client's paths of the arguments of its conversation's calls. Messages
    are joined and split on the way to a chat; the calls in them keep their order."""
    old = error.field
    if old is None:
        return
    if found := _ARGUMENTS.fullmatch(old):
        index, number = map(int, found.groups())
        error.field = arguments[number + sum(len(message.tool_calls or ()) for message in messages[:index])]
    elif pattern := next((pattern for pattern in names if pattern.match(old)), None):
        error.field = pattern.sub(names[pattern], old, count=1)
    error.message = error.message.replace(old, error.field or "", 1)
