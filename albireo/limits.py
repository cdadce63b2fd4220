"""Every bound on a request, each with its reason.

A request is checked against these in the frontend, before the coordinator hears of it; the shared-memory layouts
are sized from the same numbers, so that nothing a client sends can overrun a fixed-size record.
"""

from typing import Final

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Largest HTTP body. A 1M-token prompt given as JSON ids is about 7 MB; counted while reading, before buffering."""

SMALL_BODY_BYTES: Final = 64 * 1024
MAX_LARGE_BODIES_BYTES: Final = 256 * 1024 * 1024
"""What all bodies that a frontend is reading may take together, less the first SMALL_BODY_BYTES of each. A client may
take REQUEST_TIMEOUT_S for the rest of one, and a thousand connections would hold 8 GB for so long. Small requests are
not refused for it. The same again for those that have been read and wait for a thread to tokenise them: a chat of 8 MB
takes half a second of one."""

MAX_HEADER_BYTES: Final = 64 * 1024
"""Largest HTTP header block; uvicorn's h11/httptools buffers are otherwise filled by a client at leisure."""

MAX_PIPELINED_REQUESTS: Final = 32
"""Most requests that wait on a connection for the answer before them. Hardly a client sends any; of the shortest, one
read of 256 KB brings 14,000, which took 70 MB and a second of the event loop."""

SPARE_FILES: Final = 64
"""File descriptors that connections leave free: links to a coordinator that takes another's place (two each), and
connections that are closing or in their TLS handshake."""

HEAD_TIMEOUT_S: Final = 30.0
"""Longest time from a request's first byte to the end of its headers. A client that sends a byte now and then would
hold a connection for ever; an honest one sends all of them at once."""

REQUEST_TIMEOUT_S: Final = 120.0
"""The same to the end of its body: MAX_BODY_BYTES at half a megabit per second."""

STALLED_TIMEOUT_S: Final = 60.0
"""Longest time in which a client may take nothing of what is there for it (nginx: `send_timeout`, the same). A reader
that never reads is otherwise kept as long as its kernel answers."""

MAX_JSON_DEPTH: Final = 64
"""Deepest nesting of a request body. Real bodies have under ten levels; a parser's recursion is not for clients."""

MAX_JSON_VALUES: Final = 250_000
"""Most strings and brackets in a request body, which bounds the structure check to about 50 ms. Numbers are not
counted: a prompt of a million token ids is one list."""

MAX_MESSAGES: Final = 4096
"""Most messages in one chat: beyond this the template's rendering time, not the model, decides the latency."""

MAX_PROMPTS: Final = 1024
"""Most prompts in one completion request: each is a sequence of its own to the engine."""

MAX_NAME_CHARS: Final = 256
"""Longest `name` of a message's author, and longest key of `chat_template_kwargs`."""

MAX_TEMPLATE_KWARGS: Final = 32
"""Most `chat_template_kwargs`; templates know a handful."""

MAX_METADATA: Final = 16
"""OpenAI's bound on the entries of `metadata`; they are accepted for compatibility and not stored."""

MAX_N: Final = 128
"""Samples per prompt (`n`), OpenAI's own bound. Each is a sequence to the engine; they share the prompt's blocks."""

MAX_SEQUENCES: Final = 1024
"""Most sequences of one request, prompts times `n`: as many as prompts alone."""

MAX_STOP_STRINGS: Final = 4
"""OpenAI's bound on `stop`; each costs a search in every piece of text."""

MAX_STOP_STRING_CHARS: Final = 256
"""Longest stop string: the tail of a stream held back from the client is one character shorter than this."""

MAX_STOP_TOKEN_IDS: Final = 16
"""Stop ids kept on the device per request, the model's own EOS ids included (a fixed-width table)."""

MAX_CACHE_SALT_CHARS: Final = 256
"""Longest `cache_salt`; it is hashed once per request."""

MAX_ECHO_CHARS: Final = 200
"""How much of a name that a client sent an error repeats."""

MAX_USER_CHARS: Final = 512
"""Longest `user` field; it is accepted for OpenAI compatibility and not stored."""

MIN_PRIORITY: Final = -(2**31)
MAX_PRIORITY: Final = 2**31 - 1
"""`priority` is a signed 32-bit number; lower runs first."""

MAX_TEMPERATURE: Final = 2.0
"""OpenAI's upper bound on `temperature`."""

MIN_SAMPLED_TEMPERATURE: Final = 1e-5
"""Below this a temperature is greedy (as in vLLM): dividing logits by less overflows the device's fp32."""

MAX_PENALTY: Final = 2.0
"""OpenAI's bound on `presence_penalty` and `frequency_penalty`, on both sides of 0."""

MAX_REPETITION_PENALTY: Final = 1e3
"""`repetition_penalty` lies in (0, this]; useful values are 1 to 2, and far larger ones only overflow fp32."""

MAX_LOGIT_BIAS: Final = 1024
"""Most entries of `logit_bias` (OpenAI's own bound is 300): a fixed-width table on the device."""

MAX_BIAS: Final = 100.0
"""OpenAI's bound on one entry of `logit_bias`, on both sides of 0."""

MAX_ALLOWED_TOKEN_IDS: Final = 2**15
"""As a grammar's source they have at most MAX_GRAMMAR_CHARS characters."""

MAX_BAD_WORDS: Final = 128
MAX_BAD_WORD_TOKENS: Final = 16
MAX_BAD_WORDS_ENTRIES: Final = 1024
"""Most `bad_words`, most tokens in one, and most table entries of all together (a word takes its tokens and one
more): a fixed-width table on the device, compared with the newest tokens in every step."""

MAX_LOGPROBS: Final = 20
"""OpenAI's bound on `top_logprobs`: the token ring has this many columns."""

MAX_PROMPT_SCORES: Final = 2**18
"""Most log-probabilities of prompt tokens in one response, likely alternatives included: 16 MB of JSON, and 50 MB of
records where no alternatives are asked for. 8 MB of prompts would make gigabytes of both."""

MAX_STREAMED_PROMPT_SCORES: Final = 2**14
"""The same in a stream, which writes them on the event loop: about 20 ms in which no other stream goes on."""

MAX_GRAMMAR_CHARS: Final = 256 * 1024
"""Longest schema, regular expression or grammar. Schemas in the wild have up to some 100 KB; compiling is also bounded
in time and size."""

MAX_SCHEMA_DEPTH: Final = 32
"""Deepest nesting of a JSON schema's own text; each level of the data takes two or three. Compilers recurse."""

MAX_SCHEMA_VALUES: Final = 10_000
"""Most values in a JSON schema, of whatever kind; the largest in use have some 2,000."""

MAX_REGEX_CHARS: Final = 4096
"""Longest `structured_outputs.regex`."""

MAX_CHOICES: Final = 1000
MAX_CHOICE_CHARS: Final = 1024
"""Most `structured_outputs.choice`, and the longest one."""

MAX_DESCRIPTION_CHARS: Final = 64 * 1024
"""Longest description of a schema or a tool: agents put whole manuals there (10,000 characters and more). It is read
by no grammar, at most by a template, and the context bounds it like any other text."""

MAX_TOOLS: Final = 128
"""Most `tools` of a request, OpenAI's own bound; each is rendered by the template."""

MAX_TOOL_CALLS: Final = 128
"""Most `tool_calls` in one message of a conversation."""

GRAMMAR_LEXER_FUEL: Final = 1_000_000
GRAMMAR_STEP_FUEL: Final = 200_000
GRAMMAR_STEP_ITEMS: Final = 50_000
"""llguidance's own defaults, stated: fuel for building the lexer (about 20 ms), and for one mask (about 15 ms of
regular expressions, 2.5 ms of grammar). A request whose grammar needs more is refused, or ends with an error."""

GRAMMAR_LEXER_STATES: Final = 50_000
"""At 1 to 2 KB each: 100 MB at the most for one grammar; schemas of 100 KB have some thousands."""

GRAMMAR_SYMBOLS: Final = 100_000
"""Most symbols in a compiled grammar's productions; a schema of 100 KB has some 20,000."""

GRAMMAR_REMAINDERS: Final = 300_000
"""Most states that the `multipleOf` of a schema may need: 4 us and 300 bytes each, and no fuel counts them. 43
characters of schema took a minute and a gigabyte."""

GRAMMAR_COMPILE_TIMEOUT_S: Final = 5.0
"""A grammar that takes longer is refused. Fuel runs out in less than a second: this is for what it does not count."""

MAX_STUCK_COMPILES: Final = 2
"""Threads that are given up after that time; with one more the grammar process starts anew."""

MAX_COMPILED_GRAMMARS: Final = 256
"""Compiled grammars that are kept for the next client that sends the same source; some 100 KB each."""

GRAMMAR_RESTARTS_PER_MINUTE: Final = 3
"""How often the grammar process is started anew. After that grammars are refused until the minute is over."""

MAX_LOCAL_TOP_K: Final = 128
"""Largest `top_k` that t ranks decide without moving logits: each sends so many candidates. Beyond it a row takes the
sequence-parallel path."""

MAX_TOP_K: Final = 2**31 - 1
"""`top_k` is a signed 32-bit number on the device; 0 or -1 turns it off, above the vocabulary it changes nothing."""

MAX_SEED: Final = 2**63 - 1
MIN_SEED: Final = -(2**63)
"""`seed` is a signed 64-bit number in OpenAI's API; the device sees its 64 bits as unsigned."""

TEMPLATE_TIMEOUT_S: Final = 2.0
"""Deadline for rendering a chat template (security.md, chat templates)."""

MAX_NUM_WAITING: Final = 4096
"""Most sequences that wait for their first step before more are refused with 429 (--max-num-waiting): sixteen times
the default batch. Who comes behind so many waits for minutes, and had better ask another server."""

MAX_DETOKENIZED: Final = 1_000_000
"""Most tokens of one `/detokenize`: about 100 ms, on a thread."""

MAX_STREAM_BACKLOG_BYTES: Final = 4 * 1024 * 1024
"""Bytes of unsent stream a slow reader may leave behind before it is cut off."""

MAX_KERNEL_BACKLOG_BYTES: Final = 128 * 1024
"""Of those, what the kernel may hold that is not yet on its way to the client; by itself it takes up to 4 MB for each.
A client that is far away is still sent as much as its connection carries."""

MAX_INLINE_ENCODE_CHARS: Final = 2048
"""Longest text that is encoded on the event loop (about 1 ms); longer ones go to a thread, so that no stream waits."""

ENGINE_HEARTBEAT_TIMEOUT_NS: Final = 5_000_000_000
"""Age at which the coordinator's heartbeat is stale. It beats twice a second when idle and every step otherwise, and
it never waits for the device, so ten missed beats are no jitter."""

ENGINE_PROGRESS_TIMEOUT_NS: Final = 60_000_000_000
"""Longest time without a confirmed step while there is work. A full prefill chunk of a large model on a CPU takes
seconds (2,048 tokens of a 0.6B model: 7 s); a minute is a hang."""

MAX_ENGINE_WATCHERS: Final = 8
"""Open `/engine/events` streams of one frontend. Each is written to several times a second on the event loop that
streams answers; a page needs one."""

RETRY_AFTER_S: Final = 2
"""What a 503 or 429 tells the client to wait: about the time a restart takes with a warm page cache."""
