"""Plays a frontend: keeps a number of requests running over the coordinator's socket, and does little else."""

import time
from array import array

import numpy as np
import zmq

from albireo import sockets
from albireo.messages import Crashed, SamplingParams, Submit, Tokens, encode, frontend_decoder

_POLL_MS = 50


class RejectedError(Exception):
    """The coordinator refused a request; the text says why."""


class PipelineClient:
    """One DEALER socket. Requests are replaced as they end; the first ones are shorter than the others by steps of
    their own, so that they do not all end at once for ever after."""

    def __init__(self, run_dir: str, batch: int, prompt_len: int, output_len: int, vocab_size: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.open_socket(self._context, zmq.DEALER)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(sockets.coordinator_address(run_dir))
        self._decoder = frontend_decoder()
        self._rng = np.random.default_rng(0)
        self._prompt_len, self._output_len, self._vocab_size = prompt_len, output_len, vocab_size
        self._num_submitted = 0
        self.arrival_ns = array("q")
        """When each message came, `time.perf_counter_ns()`."""
        for index in range(batch):
            self._submit(max(1, output_len * (index + 1) // batch))

    def _submit(self, max_tokens: int) -> None:
        prompt = self._rng.integers(0, self._vocab_size, self._prompt_len, np.int32)
        sampling = SamplingParams(max_tokens=max_tokens, seed=self._num_submitted, ignore_eos=True)
        self._socket.send(encode(Submit(self._num_submitted, prompt.tobytes(), sampling)))
        self._num_submitted += 1

    def run(self, duration_s: float) -> None:
        """Receives and replaces for so long. Raises RejectedError."""
        end_s = time.perf_counter() + duration_s
        while time.perf_counter() < end_s:
            if self._socket.poll(_POLL_MS):
                self._receive()

    def _receive(self) -> None:
        message = self._decoder.decode(self._socket.recv())
        if isinstance(message, Crashed):
            return
        self.arrival_ns.append(time.perf_counter_ns())
        if not isinstance(message, Tokens):
            raise RejectedError(message.message)
        num_ended = len(message.finish) - message.finish.count(0)
        for _ in range(num_ended):
            self._submit(self._output_len)

    def close(self) -> None:
        """Leaves; what is running goes on without a listener."""
        self._socket.close()
        self._context.term()
