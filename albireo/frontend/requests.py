"""The bodies of `/v1/completions` and `/v1/chat/completions`: every field we know, with its type and bounds.

A field is in one of three groups: supported; accepted without effect, because it asks for nothing (`user`,
`metadata`...); or known and `unsupported`, where only a value that asks for nothing may pass. Any other field is
unknown, and refused. null means "not given" everywhere.
"""

import functools
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, Raw, Struct

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.grammar_fields import ResponseFormat, StructuredOutputs
from albireo.frontend.tool_fields import CallId, MessageToolCall, Tool, ToolChoice

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
BadWord = Annotated[str, Meta(min_length=1, max_length=limits.MAX_STOP_STRING_CHARS)]
NumLogprobs = Annotated[int, Meta(ge=0, le=limits.MAX_LOGPROBS)]
Penalty = Annotated[float, Meta(ge=-limits.MAX_PENALTY, le=limits.MAX_PENALTY)]
StopString = Annotated[str, Meta(min_length=1, max_length=limits.MAX_STOP_STRING_CHARS)]
UserString = Annotated[str, Meta(max_length=limits.MAX_USER_CHARS)]
Scalar = str | int | float | bool | None

_NOT_GIVEN: Raw = msgspec.field(default_factory=Raw)
"""As a factory: JSON Schema cannot write a raw default."""
_ABSENT = Raw()


def unsupported(*neutral: object) -> Meta:
    """Marks a field as known and not supported. `neutral` are the values besides null that ask for nothing.

    They are kept as JSON: `typing` gives equal annotations one object, and 0 == False."""
    return Meta(extra={"neutral": msgspec.json.encode(neutral)})


@functools.cache
def unsupported_fields(request_type: type[Struct]) -> dict[str, tuple[object, ...]]:
    """Neutral values by name, of every unsupported field of a request type."""
    hints = get_type_hints(request_type, include_extras=True)
    return {
        name: msgspec.json.decode(meta.extra["neutral"], type=tuple[object, ...])
        for name, hint in hints.items()
        for meta in getattr(hint, "__metadata__", ())
        if meta.extra is not None and "neutral" in meta.extra
    }


def refuse_unsupported(request: Struct, path: str = "") -> None:
    """Raises RequestError for the first unsupported field that asks for something; `path` goes before its name."""
    for name, neutral in unsupported_fields(type(request)).items():
        raw = getattr(request, name)
        if raw != _ABSENT and not _is_neutral(raw, neutral):
            field = path + name
            raise RequestError(f"{field} is not supported by this server", field=field, code="unsupported_parameter")


def _is_neutral(raw: Raw, neutral: tuple[object, ...]) -> bool:
    value: Any = msgspec.json.decode(raw)
    # False == 0 and True == 1, but `presence_penalty: false` is a mistake that deserves to be told
    return value is None or any(value == item and isinstance(value, bool) is isinstance(item, bool) for item in neutral)


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """The usage so far in every chunk, and not only in the last."""
    include_obfuscation: Annotated[Raw, unsupported(False)] = _NOT_GIVEN


class GenerationRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints share. Bounds and their reasons are in limits.py."""

    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=limits.MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=limits.MAX_TOP_K)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=limits.MAX_N)] | None = None
    seed: Annotated[int, Meta(ge=limits.MIN_SEED, le=limits.MAX_SEED)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=limits.MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=limits.MAX_STOP_TOKEN_IDS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: (
        Annotated[float, Meta(ge=1 / limits.MAX_REPETITION_PENALTY, le=limits.MAX_REPETITION_PENALTY)] | None
    ) = None
    """vLLM takes anything above 0; logits divided by next to nothing overflow fp32, as those multiplied by too much."""
    logit_bias: Annotated[dict[str, float], Meta(max_length=limits.MAX_LOGIT_BIAS)] | None = None
    """Token id, as JSON's keys are strings -> what is added to its logit."""
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=limits.MAX_ALLOWED_TOKEN_IDS)] | None = (
        None
    )
    bad_words: Annotated[list[BadWord], Meta(max_length=limits.MAX_BAD_WORDS)] | None = None
    prompt_logprobs: NumLogprobs | None = None
    priority: Annotated[int, Meta(ge=limits.MIN_PRIORITY, le=limits.MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=limits.MAX_CACHE_SALT_CHARS)] | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    user: UserString | None = None

    length_penalty: Annotated[Raw, unsupported(1)] = _NOT_GIVEN
    logits_processors: Annotated[Raw, unsupported([])] = _NOT_GIVEN
    spaces_between_special_tokens: Annotated[Raw, unsupported(True)] = _NOT_GIVEN
    truncate_prompt_tokens: Annotated[Raw, unsupported()] = _NOT_GIVEN
    use_beam_search: Annotated[Raw, unsupported(False)] = _NOT_GIVEN


class CompletionRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | TokenId | list[TokenId]] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    """0 only with `echo`, which then is all."""
    echo: bool | None = None
    """Whether the prompt, and with `logprobs` its log-probabilities, goes before the output."""
    logprobs: NumLogprobs | None = None

    add_special_tokens: Annotated[Raw, unsupported(True)] = _NOT_GIVEN
    best_of: Annotated[Raw, unsupported(1)] = _NOT_GIVEN
    prompt_embeds: Annotated[Raw, unsupported()] = _NOT_GIVEN
    suffix: Annotated[Raw, unsupported("")] = _NOT_GIVEN


class TextPart(Struct, forbid_unknown_fields=True):
    """A piece of a message's content. Only text exists: `type` is checked by hand, for a better message."""

    type: str
    text: str | None = None
    image_url: Annotated[Raw, unsupported()] = _NOT_GIVEN
    input_audio: Annotated[Raw, unsupported()] = _NOT_GIVEN
    video_url: Annotated[Raw, unsupported()] = _NOT_GIVEN
    file: Annotated[Raw, unsupported()] = _NOT_GIVEN
    refusal: Annotated[Raw, unsupported()] = _NOT_GIVEN


class ChatMessage(Struct, forbid_unknown_fields=True):
    """One turn. The unsupported fields may be null or empty, as clients send them back from responses."""

    role: str
    content: str | list[TextPart] | None = None
    name: Annotated[str, Meta(max_length=limits.MAX_NAME_CHARS)] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The same under its older name: what an assistant thought, which few templates show."""
    tool_call_id: CallId | None = None
    """Of a `tool` message: which call it answers."""
    tool_calls: Annotated[list[MessageToolCall], Meta(max_length=limits.MAX_TOOL_CALLS)] | None = None
    annotations: Annotated[Raw, unsupported([])] = _NOT_GIVEN
    audio: Annotated[Raw, unsupported()] = _NOT_GIVEN
    function_call: Annotated[Raw, unsupported()] = _NOT_GIVEN
    refusal: Annotated[Raw, unsupported()] = _NOT_GIVEN


class ChatRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Scalar], Meta(max_length=limits.MAX_TEMPLATE_KWARGS)] | None = None

    store: bool | None = None
    metadata: Annotated[dict[str, UserString], Meta(max_length=limits.MAX_METADATA)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Meta(max_length=limits.MAX_NAME_CHARS)] | None = None
    """For templates that know it."""
    safety_identifier: UserString | None = None
    prompt_cache_key: UserString | None = None
    service_tier: UserString | None = None

    add_special_tokens: Annotated[Raw, unsupported(False)] = _NOT_GIVEN
    audio: Annotated[Raw, unsupported()] = _NOT_GIVEN
    chat_template: Annotated[Raw, unsupported()] = _NOT_GIVEN
    documents: Annotated[Raw, unsupported([])] = _NOT_GIVEN
    echo: Annotated[Raw, unsupported(False)] = _NOT_GIVEN
    function_call: Annotated[Raw, unsupported("none", "auto")] = _NOT_GIVEN
    functions: Annotated[Raw, unsupported([])] = _NOT_GIVEN
    modalities: Annotated[Raw, unsupported(["text"])] = _NOT_GIVEN
    prediction: Annotated[Raw, unsupported()] = _NOT_GIVEN
    verbosity: Annotated[Raw, unsupported()] = _NOT_GIVEN
    web_search_options: Annotated[Raw, unsupported()] = _NOT_GIVEN
