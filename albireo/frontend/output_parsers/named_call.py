"""`tool_choice` names a function: the whole output is its arguments."""

from albireo.frontend.message_parts import Part, ToolCallArguments, ToolCallBegin
from albireo.frontend.output_parsers.call_ids import NewCallId, new_call_id


class NamedCallParser:
    """A `MessageParser`."""

    def __init__(self, name: str, new_id: NewCallId = new_call_id) -> None:
        self._name = name
        self._new_id = new_id
        self._begun = False

    def feed(self, text: str) -> list[Part]:
        if not text:
            return []
        begin: list[Part] = [] if self._begun else [ToolCallBegin(0, self._new_id(), self._name)]
        self._begun = True
        return [*begin, ToolCallArguments(0, text)]

    def end(self) -> list[Part]:
        return []
