"""The bodies of `/v1/messages` and `/v1/messages/count_tokens`: every field we know, with its type and bounds."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from albireo import limits
from albireo.frontend.requests import StopString, UserString, unsupported
from albireo.frontend.tool_fields import CallId, Description, FunctionName

_NOT_GIVEN: Raw = msgspec.field(default_factory=Raw)


class Block(Struct, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """A piece of a message's content."""

    cache_control: Raw = _NOT_GIVEN
    """Without effect: prefixes are always cached."""


class TextBlock(Block, forbid_unknown_fields=True, tag_field="type", tag="text", kw_only=True):
    text: str
    citations: Annotated[Raw, unsupported([])] = _NOT_GIVEN


class ToolUseBlock(Block, forbid_unknown_fields=True, tag_field="type", tag="tool_use", kw_only=True):
    """A call that the assistant made."""

    id: CallId
    name: FunctionName
    input: Raw
    """The arguments, an object."""


class ToolResultBlock(Block, forbid_unknown_fields=True, tag_field="type", tag="tool_result", kw_only=True):
    """What a call gave."""

    tool_use_id: CallId
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    """The model sees it as "Error: " in front of the content: no chat template has another place for it."""


class ThinkingBlock(Block, forbid_unknown_fields=True, tag_field="type", tag="thinking", kw_only=True):
    """What the assistant thought."""

    thinking: str
    signature: str | None = None
    """Without meaning here: nothing is signed."""


class RedactedThinkingBlock(Block, forbid_unknown_fields=True, tag_field="type", tag="redacted_thinking", kw_only=True):
    """Another server's; it says nothing to this one's model."""

    data: str


ContentBlock = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class AnthropicMessage(Struct, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[ContentBlock]


class AnthropicTool(Struct, forbid_unknown_fields=True):
    """A function that the model may call; Anthropic's own tools (`type` other than custom) are not there."""

    name: FunctionName
    input_schema: Raw
    description: Description | None = None
    type: Literal["custom"] | None = None
    cache_control: Raw = _NOT_GIVEN


class AnthropicToolChoice(Struct, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, forbid_unknown_fields=True):
    """Goes to a chat template that reads `enable_thinking`. With another, the model thinks or not as it was made:
    `adaptive` and `disabled` have no effect, and `enabled` is refused unless the server reads reasoning
    (--reasoning-parser), for then the model is one that thinks."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Without effect: `max_tokens` bounds thought and answer together."""
    display: str | None = None
    """Without effect: thoughts are shown as they are."""


class Metadata(Struct, forbid_unknown_fields=True):
    user_id: UserString | None = None


class CountTokensRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages/count_tokens`: what makes a prompt."""

    model: str
    messages: Annotated[list[AnthropicMessage], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    mcp_servers: Annotated[Raw, unsupported([])] = _NOT_GIVEN


class MessagesRequest(CountTokensRequest, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stop_sequences: Annotated[list[StopString], Meta(max_length=limits.MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=limits.MAX_TOP_K)] | None = None
    metadata: Metadata | None = None
    service_tier: UserString | None = None
    container: Annotated[Raw, unsupported()] = _NOT_GIVEN
    context_management: Annotated[Raw, unsupported()] = _NOT_GIVEN
    output_config: Annotated[Raw, unsupported()] = _NOT_GIVEN
