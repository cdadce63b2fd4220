"""The items of a response's `output`, while they grow and when they are done."""

import uuid
from typing import Any, Literal

from msgspec import Struct

Kind = Literal["message", "reasoning", "function_call"]
_ID_PREFIXES: dict[Kind, str] = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


class Item(Struct):
    """One of them."""

    kind: Kind
    id: str
    index: int
    """In `output`."""
    pieces: list[str]
    """Its text, or its arguments, as it came."""
    logprobs: list[dict[str, Any]]
    call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def new_item(kind: Kind, index: int, call_id: str = "", name: str = "") -> Item:
    return Item(kind, _ID_PREFIXES[kind] + uuid.uuid4().hex, index, [], [], call_id, name)


def content_part(item: Item, text: str) -> dict[str, Any]:
    """The one content part of a message or a thought."""
    if item.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": item.logprobs}


def begun(item: Item) -> dict[str, Any]:
    """The item without what is still to come."""
    match item.kind:
        case "message":
            rest: dict[str, Any] = {"role": "assistant", "content": []}
        case "reasoning":
            rest = {"summary": [], "content": []}
        case "function_call":
            rest = {"call_id": item.call_id, "name": item.name, "arguments": ""}
    return {"id": item.id, "type": item.kind, "status": "in_progress"} | rest


def done(item: Item, status: str) -> dict[str, Any]:
    """The whole item. `status`: completed or incomplete."""
    whole = begun(item) | {"status": status}
    if item.kind == "function_call":
        return whole | {"arguments": item.text}
    return whole | {"content": [content_part(item, item.text)]}
