"""What every route works with: the model's tokenizer and template, the engine link, and whether we take requests."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from albireo import limits
from albireo.config import FrontendConfig
from albireo.errors import NotFoundError, RequestError, UnavailableError
from albireo.frontend.chat_template import ChatTemplate, find_template
from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.engine_client import EngineClient
from albireo.frontend.generation import Generation
from albireo.frontend.metrics import RequestMetrics
from albireo.frontend.output import Output
from albireo.frontend.requests import GenerationRequest
from albireo.frontend.sampling import ModelBounds, sampling_params, stop_strings
from albireo.frontend.stop_strings import StopStrings
from albireo.frontend.tokenizer import Tokenizer, load_tokenizer_config, special_tokens

T = TypeVar("T")

PREPARE_THREADS = 4
"""Long texts and chats are prepared off the event loop; encoding releases the GIL, and a slow template blocks one."""


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
        engine: EngineClient,
        metrics: RequestMetrics,
        stats: npt.NDArray[Any],
        clock_ns: Callable[[], int],
    ) -> None:
        """`stats`: ENGINE_STATS[1] in shared memory. `clock_ns`: CLOCK_MONOTONIC, which the stats are in."""
        self.config = config
        self.text = text
        self.engine = engine
        self.metrics = metrics
        self.stats = stats
        self.clock_ns = clock_ns
        self.unavailable: str | None = "the server is starting"
        """Why no request is taken, or None."""
        self._stopping = False
        self.bounds = ModelBounds(
            config.scheduler.max_model_len,
            config.model.vocab_size,
            config.model.eos_token_ids,
            config.generation_defaults,
        )
        self.threads = ThreadPoolExecutor(PREPARE_THREADS, "prepare")

    @property
    def model_name(self) -> str:
        """The name that responses carry."""
        return self.config.served_model_names[0]

    def engine_ready(self, num_kv_blocks: int) -> None:
        """The engine has this many KV blocks: requests may come."""
        capacity = num_kv_blocks * self.config.scheduler.block_size
        context_tokens = min(self.config.scheduler.max_model_len, capacity)
        self.bounds = ModelBounds(
            context_tokens, self.bounds.vocab_size, self.bounds.eos_token_ids, self.bounds.defaults
        )
        if not self._stopping:
            self.unavailable = None

    def stop(self) -> None:
        """No request is taken from now on."""
        self._stopping = True
        self.unavailable = "the server is stopping"

    def check_available(self) -> None:
        """Raises UnavailableError while no request is taken."""
        if self.unavailable is not None:
            raise UnavailableError(self.unavailable)

    def check_request(self, request: GenerationRequest) -> None:
        """Raises UnavailableError, or NotFoundError for a model that is not served."""
        self.check_available()
        if request.model is not None and request.model not in self.config.served_model_names:
            name = request.model[: limits.MAX_ECHO_CHARS]
            raise NotFoundError(f"the model {name!r} does not exist", field="model", code="model_not_found")

    async def prepare(self, work: Callable[[], T], num_chars: int) -> T:
        """`work()`, on a thread where it is long."""
        if num_chars <= limits.MAX_INLINE_ENCODE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def submit(
        self, request: GenerationRequest, prompts: list[list[int]], default_max_tokens: int | None, output: Output
    ) -> list[Generation]:
        """One generation per prompt, handed to the engine. Raises RequestError, and then none is."""
        self.check_available()  # the prompt's preparation may have taken a while
        params = [sampling_params(request, len(prompt), default_max_tokens, self.bounds) for prompt in prompts]
        stops = stop_strings(request)
        shows_stop = bool(request.include_stop_str_in_output)
        generations = [
            Generation(
                index,
                len(prompt),
                self.text.detokenizer(request.skip_special_tokens is not False),
                StopStrings(stops, shows_stop) if stops else None,
                output,
                keeps_token_ids=bool(request.return_token_ids),
                shows_stop=shows_stop,
            )
            for index, prompt in enumerate(prompts)
        ]
        try:
            for generation, prompt, sampling in zip(generations, prompts, params, strict=True):
                self.engine.submit(generation, prompt, sampling, request.priority or 0, request.cache_salt or "")
        except RequestError:
            self.engine.abort(generations)
            raise
        return generations
