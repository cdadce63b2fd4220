"""What every route works with: the model's tokenizer and template, the engine link, and whether we take requests."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy.typing as npt

from albireo import limits
from albireo.config import FrontendConfig
from albireo.errors import NotFoundError, RequestError, StoppingError, TooManyRequestsError, UnavailableError
from albireo.frontend.allowed_tokens import allowed_tokens_grammar
from albireo.frontend.auth import ApiKeys
from albireo.frontend.bad_words import bad_word_sequences
from albireo.frontend.body import num_large_bytes
from albireo.frontend.chat_template import ChatTemplate, find_template
from albireo.frontend.detokenizer import NOTHING_SHOWN, DetokenizerFactory
from albireo.frontend.generation import Generation, PromptOnly, SampleGroup
from albireo.frontend.grammar_fields import requested_grammar
from albireo.frontend.logit_bias import logit_bias
from albireo.frontend.message_parsing import MessageParsing
from albireo.frontend.output import Output
from albireo.frontend.replicas import Replicas
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.requests import GenerationRequest
from albireo.frontend.samples import Sample, check_num_sequences, samples_of
from albireo.frontend.sampling import ModelBounds, check_constrained, check_num_scores, sampling_params, stop_strings
from albireo.frontend.stop_strings import StopStrings
from albireo.frontend.tokenizer import Tokenizer, load_tokenizer_config, special_tokens
from albireo.messages import Grammar

T = TypeVar("T")

PREPARE_THREADS = 4
"""Long texts and chats are prepared off the event loop; encoding releases the GIL, and a slow template blocks one."""

BAD_WORD_CHARS = 40
"""What a bad word costs beside its own characters, in characters of text to encode."""


class TextModel:
    """Both directions between text and tokens, for one checkpoint."""

    def __init__(self, config: FrontendConfig) -> None:
        """Reads the tokenizer's files. Raises StartupError."""
        folder = Path(config.tokenizer_path)
        tokenizer_config = load_tokenizer_config(folder)
        source = config.chat_template or find_template(folder, tokenizer_config)
        self.template = None if source is None else ChatTemplate(source, special_tokens(tokenizer_config))
        self.tokenizer = Tokenizer(
            folder,
            config.model.eos_token_ids,
            "" if self.template is None else self.template.text,
            config.scheduler.max_model_len,
        )
        self.detokenizer = DetokenizerFactory(self.tokenizer.backend)


class Service:
    """Lives on the event loop."""

    def __init__(
        self,
        config: FrontendConfig,
        text: TextModel,
        engine: Replicas,
        metrics: Sequence[RequestMetrics],
        stats: Sequence[npt.NDArray[Any]],
        clock_ns: Callable[[], int],
    ) -> None:
        """`metrics`, `stats`: of each replica, the latter ENGINE_STATS[1] in shared memory. `clock_ns`:
        CLOCK_MONOTONIC, which the stats are in."""
        self.config = config
        self.text = text
        self.engine = engine
        self.metrics = metrics
        self.stats = stats
        self.api_keys = ApiKeys(config.api_keys)
        self.clock_ns = clock_ns
        self.unavailable: str | None = "the server is starting"
        """Why no request is taken, or None."""
        self._stopping = False
        self._num_preparing = 0
        """Requests on the threads, or waiting for one."""
        self._num_large_bytes = 0
        """Of their bodies, without the first SMALL_BODY_BYTES of each."""
        self.bounds = ModelBounds(
            config.scheduler.max_model_len,
            config.model.vocab_size,
            config.model.eos_token_ids,
            config.generation_defaults,
            config.max_logprobs,
        )
        self.threads = ThreadPoolExecutor(PREPARE_THREADS, "prepare")

    @property
    def model_name(self) -> str:
        """The name that responses carry."""
        return self.config.served_model_names[0]

    def engine_ready(self, replica: int, num_kv_blocks: int, computes: bool) -> None:
        """This replica has so many KV blocks: requests may come, and wait where it does not compute yet."""
        cache_tokens = num_kv_blocks * self.config.scheduler.block_size
        # any of the replicas may get a request
        context_tokens = min(self.bounds.context_tokens, cache_tokens)
        self.bounds = msgspec.structs.replace(self.bounds, context_tokens=context_tokens)
        if computes:
            self.engine.up(replica, cache_tokens)
        if not self._stopping:
            self.unavailable = None

    @property
    def stopping(self) -> bool:
        """Whether the server is about to end."""
        return self._stopping

    def stop(self) -> None:
        """No request is taken from now on."""
        self._stopping = True
        self.unavailable = str(StoppingError())

    def check_available(self) -> None:
        """Raises UnavailableError while no request is taken."""
        if self._stopping:
            raise StoppingError
        if self.unavailable is not None:
            raise UnavailableError(self.unavailable)

    def check_request(self, request: GenerationRequest) -> None:
        """Raises UnavailableError, TooManyRequestsError, or NotFoundError for a model that is not served."""
        self.check_available()
        self.check_model(request.model)
        waiting = self._num_too_many_waiting()
        if waiting and self._last_behind(request) is None:
            raise TooManyRequestsError(f"{waiting} sequences are waiting; this server lets no more wait")

    def _num_too_many_waiting(self) -> int:
        """How many wait where no more may, else 0."""
        waiting = self.engine.num_waiting + self._num_preparing
        return waiting if waiting >= self.config.max_num_waiting else 0

    def _last_behind(self, request: GenerationRequest) -> Generation | None:
        """Who gives way to it when the queue is full. Of other frontends' nobody knows the priority here."""
        if self.config.scheduler.policy != "priority":
            return None
        return self.engine.last_waiting_behind(request.priority or 0)

    def _make_room(self, request: GenerationRequest, num_sequences: int) -> None:
        """Before it joins a full queue, as many leave it that would start later and after no other. Raises
        TooManyRequestsError where there is none any more."""
        waiting = self._num_too_many_waiting()
        if not waiting or self.config.scheduler.policy != "priority":
            return
        for number in range(num_sequences):
            last = self._last_behind(request)
            if last is None and not number:
                raise TooManyRequestsError(f"{waiting} sequences are waiting; this server lets no more wait")
            if last is None:
                return
            self.engine.fail(last, TooManyRequestsError("a request of higher priority has its place in the full queue"))

    def check_model(self, model: str | None) -> None:
        """Raises NotFoundError for a model that is not served."""
        if model is not None and model not in self.config.served_model_names:
            name = model[: limits.MAX_ECHO_CHARS]
            raise NotFoundError(f"the model {name!r} does not exist", field="model", code="model_not_found")

    async def prepare(self, work: Callable[[], T], num_chars: int) -> T:
        """`work()`, on a thread where it is long."""
        if num_chars <= limits.MAX_INLINE_ENCODE_CHARS:
            return work()
        return await self.prepare_on_thread(work)

    async def prepare_on_thread(self, work: Callable[[], T]) -> T:
        """`work()`, on a thread. The request counts as waiting meanwhile: many that come at once would otherwise all
        pass `check_request` before the first is the engine's. Raises TooManyRequestsError where as many are here as may
        wait (what only asks for tokens does not go through `check_request`), or too many bytes of them."""
        if self._num_preparing >= self.config.max_num_waiting:
            raise TooManyRequestsError(f"{self._num_preparing} requests wait to be tokenised; no more may wait")
        num_large = num_large_bytes()
        if num_large and self._num_large_bytes + num_large > limits.MAX_LARGE_BODIES_BYTES:
            raise TooManyRequestsError("other large requests wait to be tokenised; send it again in a moment")
        self._num_preparing += 1
        self._num_large_bytes += num_large
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, work)
        finally:
            self._num_preparing -= 1
            self._num_large_bytes -= num_large

    async def bad_words(self, request: GenerationRequest) -> tuple[tuple[int, ...], ...]:
        """The request's `bad_words` as token sequences."""
        words = request.bad_words
        if not words:
            return ()
        tokenizer, vocab_size = self.text.tokenizer, self.bounds.vocab_size
        # each is encoded twice, and that costs some 20 µs however short it is
        num_chars = sum(map(len, words)) + BAD_WORD_CHARS * len(words)
        return await self.prepare(lambda: bad_word_sequences(words, tokenizer, vocab_size), num_chars)

    def submit(
        self,
        request: GenerationRequest,
        prompts: list[list[int]],
        default_max_tokens: int | None,
        bad_words: tuple[tuple[int, ...], ...],
        output: Output,
        parsing: MessageParsing | None = None,
    ) -> list[Generation]:
        """The generations of each prompt, `n` or one, handed to the engine; `parsing`: how they will be read. Raises
        RequestError, and then none is."""
        self.check_available()  # the prompt's preparation may have taken a while
        grammar = None if parsing is None else parsing.grammar
        grammar = grammar or requested_grammar(request.response_format, request.structured_outputs)
        allowed = allowed_tokens_grammar(request.allowed_token_ids, self.bounds)
        if grammar is not None and allowed is not None:
            raise RequestError(f"{allowed.field} does not go together with {grammar.field}", field=allowed.field)
        grammar = grammar or allowed
        if grammar is not None:
            check_constrained(request, grammar.field)
        biases = logit_bias(request.logit_bias or {}, self.bounds.vocab_size)
        params = [
            sampling_params(request, len(prompt), default_max_tokens, self.bounds, bad_words, biases)
            for prompt in prompts
        ]
        num_samples = request.n or 1
        check_num_sequences(len(prompts), num_samples)
        lengths = [len(prompt) for prompt in prompts]
        check_num_scores(params, lengths, num_samples, bool(request.stream))
        samples = samples_of(params, lengths, num_samples)
        stops = stop_strings(request)
        shown = NOTHING_SHOWN if parsing is None else parsing.shown
        shows_stop = bool(request.include_stop_str_in_output)
        groups = [SampleGroup(num_samples) for _ in prompts]
        kind = PromptOnly if request.max_tokens == 0 else Generation
        generations = [
            kind(
                index,
                len(prompts[sample.prompt_index]),
                self.text.detokenizer(request.skip_special_tokens is not False, shown),
                StopStrings(stops, shows_stop) if stops else None,
                output,
                keeps_token_ids=bool(request.return_token_ids) or (parsing is not None and parsing.reads_reasoning),
                shows_stop=shows_stop,
                scores=sample.scores,
                min_tokens=sample.sampling.min_tokens,
                prompt_index=sample.prompt_index,
                max_tokens=sample.sampling.max_tokens,
                group=groups[sample.prompt_index],
            )
            for index, sample in enumerate(samples)
        ]
        self._make_room(request, len(generations))
        try:
            self._hand_over(request, prompts, samples, generations, grammar)
        except RequestError:
            self.engine.abort(generations)
            raise
        return generations

    def _hand_over(
        self,
        request: GenerationRequest,
        prompts: Sequence[list[int]],
        samples: Sequence[Sample],
        generations: Sequence[Generation],
        grammar: Grammar | None,
    ) -> None:
        priority, salt = request.priority or 0, request.cache_salt or ""
        leader = None
        for sample, generation in zip(samples, generations, strict=True):
            if sample.leads:
                leader = generation if len(samples) > len(prompts) else None
            prompt = prompts[sample.prompt_index]
            self.engine.submit(generation, prompt, sample.sampling, priority, salt, grammar, leader)
