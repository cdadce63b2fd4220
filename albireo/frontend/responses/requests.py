"""The body of `/v1/responses`: every field we know, with its type and bounds.

Nothing is stored: `store` may be asked for and has no effect, and what refers to something stored is refused.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from albireo import limits
from albireo.frontend.requests import NumLogprobs, StopString, UserString, unsupported
from albireo.frontend.tool_fields import CallId, Description, FunctionName

_NOT_GIVEN: Raw = msgspec.field(default_factory=Raw)


class ContentPart(Struct, forbid_unknown_fields=True):
    """A piece of a message. Only text exists: `type` is checked by hand, for a better message."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: Raw = _NOT_GIVEN
    """Of earlier responses, as clients send them back; as `logprobs`."""
    logprobs: Raw = _NOT_GIVEN


class InputItem(Struct, forbid_unknown_fields=True):
    """A message, a call, its result or a thought; which fields belong to which is checked by hand (`to_chat`)."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: CallId | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    encrypted_content: Annotated[Raw, unsupported()] = _NOT_GIVEN
    """Of thoughts, and null: only who encrypted one can read it."""


class FunctionTool(Struct, forbid_unknown_fields=True):
    """A function that the model may call; OpenAI's own tools (`type` other than function) are not there."""

    type: Literal["function"]
    name: FunctionName
    parameters: Raw = _NOT_GIVEN
    description: Description | None = None
    strict: bool | None = None


class FunctionChoice(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str


class TextFormat(Struct, forbid_unknown_fields=True):
    """`response_format`, laid flat."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME_CHARS)] | None = None
    schema: Raw = _NOT_GIVEN
    description: Description | None = None
    strict: bool | None = None


class TextOptions(Struct, forbid_unknown_fields=True):
    format: TextFormat | None = None
    verbosity: Annotated[Raw, unsupported("medium")] = _NOT_GIVEN


class ReasoningOptions(Struct, forbid_unknown_fields=True):
    effort: Annotated[str, Meta(max_length=limits.MAX_NAME_CHARS)] | None = None
    """For templates that know `reasoning_effort`."""
    summary: Annotated[Raw, unsupported("auto")] = _NOT_GIVEN
    generate_summary: Annotated[Raw, unsupported("auto")] = _NOT_GIVEN


class ResponsesStreamOptions(Struct, forbid_unknown_fields=True):
    include_obfuscation: Annotated[Raw, unsupported(False)] = _NOT_GIVEN


Includable = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
"""The second has no effect, and clients that store nothing send it always: thoughts are in plain text, and an item's
`encrypted_content` is absent."""


class ResponsesRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/responses`."""

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=limits.MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: NumLogprobs | None = None
    include: list[Includable] | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """Either way a conversation that is too long is refused."""
    metadata: Annotated[dict[str, UserString], Meta(max_length=limits.MAX_METADATA)] | None = None
    user: UserString | None = None
    safety_identifier: UserString | None = None
    prompt_cache_key: UserString | None = None
    service_tier: UserString | None = None
    store: bool | None = None
    """Nothing is stored: the response says so."""

    seed: Annotated[int, Meta(ge=limits.MIN_SEED, le=limits.MAX_SEED)] | None = None
    """This and the next are not OpenAI's, but vLLM's."""
    top_k: Annotated[int, Meta(ge=-1, le=limits.MAX_TOP_K)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=limits.MAX_STOP_STRINGS)] | None = None

    background: Annotated[Raw, unsupported(False)] = _NOT_GIVEN
    conversation: Annotated[Raw, unsupported()] = _NOT_GIVEN
    max_tool_calls: Annotated[Raw, unsupported()] = _NOT_GIVEN
    previous_response_id: Annotated[Raw, unsupported()] = _NOT_GIVEN
    prompt: Annotated[Raw, unsupported()] = _NOT_GIVEN
    prompt_cache_retention: Annotated[Raw, unsupported()] = _NOT_GIVEN
