"""Every message between processes: msgspec Structs over ZeroMQ as msgpack. Nothing else travels, never pickle.

Request path     frontend (DEALER) -> coordinator (ROUTER): `Submit`, `Abort`
Result path      coordinator (ROUTER) -> frontend (DEALER): `Tokens` once a step, `Rejected`, `Failed`, `Expired`,
                 `Crashed`
Grammar path     coordinator (ROUTER) -> grammar (DEALER): `Compile`, `Bind`, `Advance`, `Forget`
                 grammar -> coordinator: `GrammarUp`, `Compiled`, `Refused`, `Broken`
Control path     child (DEALER) -> supervisor (ROUTER): `Progress`, `WorkerReady`, `Ready`, `EngineHalted`, `Fatal`
                 supervisor -> child: `EngineReady`, `ReplicaDown`, `WorkersDown`, `FrontendDown`, `GrammarDown`,
                 `Reload`, `Stop`

Each socket has one typed decoder (the `*_decoder` functions below), so a wrong message is an error where it arrives.
Arrays travel as little-endian bytes (`numpy.frombuffer` reads them without a loop over rows).
Doorbells carry no message: they are empty frames, and the rings' sequence numbers are the truth.
"""

from enum import IntEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from albireo import limits
from albireo.config import LogLevel

Uint64 = Annotated[int, Meta(ge=0)]
"""msgpack's own largest integer is the upper bound."""

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class Finish(IntEnum):
    """Why a row's token is its request's last; one byte in the token ring and in `Tokens.finish`."""

    NONE = 0
    """The request goes on."""
    EOS = 1
    """The model's end-of-sequence id, found on the device."""
    STOP_TOKEN = 2
    """One of the request's `stop_token_ids`, found on the device."""
    LENGTH = 3
    """`max_tokens` or the model's context is used up; known to the coordinator when it plans."""
    ABORT = 4
    """The engine ended it; the row carries no token (-1)."""


WAITED: Final = -2
"""`token` of a row whose grammar's mask was not there in time: nothing was sampled, and the row goes on as it was."""

Penalty = Annotated[float, Meta(ge=-limits.MAX_PENALTY, le=limits.MAX_PENALTY)]
Bias = Annotated[float, Meta(ge=-limits.MAX_BIAS, le=limits.MAX_BIAS)]
NumLogprobs = Annotated[int, Meta(ge=-1, le=limits.MAX_LOGPROBS)]
BadWord = Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=limits.MAX_BAD_WORD_TOKENS)]


class SamplingParams(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a request's tokens are chosen. Validated by the frontend; bounds are repeated here for the decoder."""

    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0.0, le=limits.MAX_TEMPERATURE)] = 1.0
    """0 is greedy: the largest logit, the smallest id among equals."""
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=limits.MAX_TOP_K)] = 0
    """0: all tokens."""
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    seed: Uint64 = 0
    """Key of the counter-based RNG. The frontend draws one when the client gives none."""
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=limits.MAX_STOP_TOKEN_IDS)] = ()
    """The client's stop ids, without the model's EOS ids."""
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    """Until so many output tokens are there, EOS and stop ids cannot be sampled."""
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    """Both count output tokens only, as OpenAI does."""
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=limits.MAX_REPETITION_PENALTY)] = 1.0
    """Over prompt and output tokens."""
    logit_bias: Annotated[tuple[tuple[TokenId, Bias], ...], Meta(max_length=limits.MAX_LOGIT_BIAS)] = ()
    """(token id, what is added to its logit); ids do not repeat."""
    bad_words: Annotated[tuple[BadWord, ...], Meta(max_length=limits.MAX_BAD_WORDS)] = ()
    """Token sequences that must not appear in the output; their lengths plus one each add up to at most
    `limits.MAX_BAD_WORDS_ENTRIES`."""
    logprobs: NumLogprobs = -1
    """-1: none; n: of each output token, and of the n most likely ones beside it."""
    prompt_logprobs: NumLogprobs = -1
    """The same for the prompt's tokens after the first."""


class Grammar(Struct, frozen=True, forbid_unknown_fields=True):
    """What a request's output must match, in the words of its client; compiled by the grammar process."""

    kind: Literal["json_schema", "regex", "lark"]
    """A JSON schema; a regular expression (Rust's syntax, the whole output); a context-free grammar in llguidance's
    dialect of Lark, which can embed the other two."""
    source: Annotated[str, Meta(min_length=1, max_length=limits.MAX_GRAMMAR_CHARS)]
    field: str
    """The request's field that asked for it, for errors."""
    after: str = ""
    """Text of the output (`</think>`) behind which the grammar begins; until it has come, anything but an end may."""
    opened_by: str = ""
    """The output may begin with this text (`<think>`), and only then is `after` awaited; else all of it is the
    grammar's. Empty: the prompt has it already."""


class CollectiveKind(IntEnum):
    """What ranks do together; `waiting_in` of a worker's heartbeat."""

    NONE = 0
    ALL_REDUCE = 1
    ALL_GATHER = 2
    ALL_TO_ALL = 3


class Resumed(Struct, frozen=True, forbid_unknown_fields=True):
    """How far a request had come with a coordinator that has died."""

    num_output_tokens: Annotated[int, Meta(ge=0)]
    """The last so many of `Submit.prompt_token_ids` are output: delivered, and not to be delivered again."""
    num_scored: Annotated[int, Meta(ge=0)] = 0
    """Prompt logprobs delivered: of the tokens at positions 1 to this."""


class Submit(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A request, tokenised and checked. `request_id` is the frontend's own number, unique in its lifetime."""

    request_id: Uint64
    prompt_token_ids: bytes
    """int32[n_prompt_tokens], little-endian, n >= 1."""
    sampling: SamplingParams
    priority: Annotated[int, Meta(ge=limits.MIN_PRIORITY, le=limits.MAX_PRIORITY)] = 0
    """Lower runs first, under `--scheduling-policy priority`."""
    cache_salt: str = ""
    """Requests share prefix-cache blocks only with requests of the same salt."""
    grammar: Grammar | None = None
    sample_group: Uint64 = 0
    """The frontend's number, never used again, of a prompt that several requests sample (`n`); 0 for one alone. They
    share the prompt's blocks, also where the prefix cache is off."""
    resumed: Resumed | None = None
    """Of a request that was admitted before."""
    arrival_ns: Uint64 = 0
    """CLOCK_MONOTONIC when the frontend had it ready, also where it is sent again; 0: it is new to everybody."""
    num_crashes: Uint64 = 0
    """As the coordinator before this one has counted (`Crashed`), if it has not got on since."""


class Abort(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Drop these requests: client gone, or a stop string was found. Unknown ids are ignored; nothing is answered."""

    request_ids: list[Uint64]


class Admitted(Struct, frozen=True, array_like=True):
    """A request's first scheduling: how much of its prompt came from the prefix cache."""

    request_id: Uint64
    num_cached_tokens: int


class Tokens(Struct, frozen=True, tag=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one confirmed step produced for one frontend: parallel arrays with one entry per row.

    A request's rows come in order, one token each; a row whose `finish` is not `Finish.NONE` is its request's last.
    A row of `Finish.ABORT` has token -1.
    """

    step: int
    request_ids: bytes
    """uint64[n_rows]"""
    token_ids: bytes
    """int32[n_rows]"""
    finish: bytes
    """uint8[n_rows], values of `Finish`"""
    admitted: list[Admitted] = []
    """Requests whose first chunk was scheduled since the last message; sent before or with their first token."""
    logprob_request_ids: bytes = b""
    """uint64[n_logprobs]"""
    logprobs: bytes = b""
    """`shm.layout.LOGPROB`[n_logprobs]: of sampled tokens (one for each row of a request that asked, in order) and
    of prompt tokens (`position` below the prompt's length); a prompt's come before its first output token."""


class Rejected(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The coordinator cannot run this request; its one terminal event. `message` may be shown to the client."""

    request_id: Uint64
    field: str
    message: str


class Failed(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The engine cannot go on with this request, through no fault of its client; its one terminal event. `message` may
    be shown to the client."""

    request_id: Uint64
    message: str
    is_transient: bool = False
    """The same request can be served in a moment."""


class Expired(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request has waited for its first step as long as the server lets it; its one terminal event. It can be sent
    again. `message` may be shown to the client."""

    request_id: Uint64
    message: str


class Crashed(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Workers have died with these requests in flight: any of them may be what kills them. They go on; the frontend
    keeps the counts for the case that the coordinator dies too."""

    num_crashes: dict[Uint64, Uint64]
    """By request id: how often that happened after its newest token."""


class Compile(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A request's grammar. `handle` is the coordinator's number for the request, never used again. The answer is one
    `Compiled` or `Refused`."""

    handle: Uint64
    kind: str
    source: str
    after: str = ""
    opened_by: str = ""
    output_token_ids: bytes = b""
    """int32[n], little-endian: the output so far, where another process had the grammar before."""


class Bind(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """From now on the masks of `handle` belong into `slot`, beginning with the one for `position`, which is next.
    Slot -1: nowhere, since the request was preempted. Sent when no step that reads the slot's old mask is in flight."""

    handle: Uint64
    slot: int
    generation: int
    position: int


class Advance(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Confirmed tokens of a step, in parallel arrays [n]; none of them ends its request."""

    step: int
    handles: bytes
    """uint64[n]"""
    token_ids: bytes
    """int32[n]"""


class Forget(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """These requests have ended. Unknown handles are ignored."""

    handles: list[Uint64]


class GrammarUp(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The grammar process has started, and knows of no handle."""

    pid: int
    problem: str | None
    """Why it cannot serve grammars for this model, or None."""


class Compiled(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request can run."""

    handle: Uint64


class Refused(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The grammar is wrong or too large; `message` may be shown to the client."""

    handle: Uint64
    message: str


class Broken(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The grammar, which had compiled, cannot say what may come next. `message` is the library's, for the log."""

    handle: Uint64
    message: str


class Progress(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A child's start-up progress, for the supervisor's display."""

    stage: str
    fraction: Annotated[float, Meta(ge=0.0, le=1.0)]


class WorkerReady(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A worker has loaded its weights, allocated its KV blocks and run the model once."""

    num_kv_blocks: Annotated[int, Meta(ge=1)]
    device: str


class EngineReady(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """All workers are ready; the engine has this many KV blocks (the smallest worker's). A coordinator hears it again
    after `WorkersDown`; a frontend when another coordinator has taken the place, which knows of no request."""

    num_kv_blocks: Annotated[int, Meta(ge=1)]
    coordinator: str = "coordinator-0"
    """Identity of the coordinator to talk to."""
    replica: int = 0
    """Number of the replica that it plans for."""
    computes: bool = True
    """For frontends: False while there are no workers. Requests can be sent all the same, and wait."""


class ReplicaDown(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Of several replicas this one computes nothing until the next `EngineReady`: a frontend's requests may go on with
    the others."""

    replica: int


class WorkersDown(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The workers are gone, with all that their devices held. The coordinator answers `EngineHalted` once it has taken
    the results that are there, and touches no ring until the next `EngineReady`."""


class EngineHalted(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The rings are the supervisor's, until it says `EngineReady`."""


class FrontendDown(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The frontend of this identity has died: nobody waits for its requests."""

    frontend: str


class GrammarDown(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The grammar process `pid` has died, and all that it knew. It is started anew if `restarts`, else in a minute.
    `pid` is 0 for one that never was this coordinator's."""

    pid: int
    restarts: bool


class Reload(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Settings that have changed while the server runs; they hold from now on."""

    log_level: LogLevel
    api_keys: tuple[str, ...] | None = None
    """For frontends, in place of those of their config; the others need not know them."""


class Ready(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A coordinator or frontend serves from now on."""


class Fatal(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A child is about to exit and says why in one line. `exit_code` is the supervisor's: 3 failed start, 1 else."""

    message: str
    exit_code: int = 1


class Stop(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The supervisor asks a child to end cleanly. `drain`: a frontend lets running streams finish first, as long as
    its config says; without it they end with an error event at once (there is no engine left to finish them)."""

    drain: bool = True


ToCoordinator = Submit | Abort
ToFrontend = Tokens | Rejected | Failed | Expired | Crashed
ToGrammar = Compile | Bind | Advance | Forget
FromGrammar = GrammarUp | Compiled | Refused | Broken
ToSupervisor = Progress | WorkerReady | Ready | EngineHalted | Fatal
FromSupervisor = EngineReady | ReplicaDown | WorkersDown | FrontendDown | GrammarDown | Reload | Stop

_encoder = msgspec.msgpack.Encoder()


def encode(message: Struct) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


def coordinator_decoder() -> msgspec.msgpack.Decoder[ToCoordinator]:
    return msgspec.msgpack.Decoder(ToCoordinator)


def frontend_decoder() -> msgspec.msgpack.Decoder[ToFrontend]:
    return msgspec.msgpack.Decoder(ToFrontend)


def grammar_decoder() -> msgspec.msgpack.Decoder[ToGrammar]:
    return msgspec.msgpack.Decoder(ToGrammar)


def from_grammar_decoder() -> msgspec.msgpack.Decoder[FromGrammar]:
    return msgspec.msgpack.Decoder(FromGrammar)


def supervisor_decoder() -> msgspec.msgpack.Decoder[ToSupervisor]:
    return msgspec.msgpack.Decoder(ToSupervisor)


def child_decoder() -> msgspec.msgpack.Decoder[FromSupervisor]:
    return msgspec.msgpack.Decoder(FromSupervisor)
