"""Log-probabilities of one sequence's tokens, from the engine's records to whoever writes the response."""

from typing import Any

import numpy as np
import numpy.typing as npt

from albireo.shm.layout import LOGPROB

Records = npt.NDArray[Any]
"""`shm.layout.LOGPROB`[n]"""


class TokenScores:
    """A prompt's and an output's records. Only requests that asked for log-probabilities have one."""

    __slots__ = ("_num_prompt_tokens", "_num_taken", "_output", "prompt")

    def __init__(self, num_prompt_tokens: int, scores_prompt: bool) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._output: list[bytes] = []
        self._num_taken = 0
        self.prompt: Records | None = np.zeros(num_prompt_tokens, LOGPROB) if scores_prompt else None
        """[num_prompt_tokens] by position, all zero where none came: a model scores nothing before the first token.
        By position, since they come in parts, one for each chunk of a prefill, and a preempted prompt's come again."""

    @property
    def num_prompt_scored(self) -> int:
        """Prompt tokens whose records have come: those at positions 1 to this."""
        return 0 if self.prompt is None else int(np.count_nonzero(self.prompt["rank"]))

    def add(self, records: Records) -> None:
        """Records of one message, in order: `position` tells whose they are."""
        positions = records["position"]
        of_prompt = positions < self._num_prompt_tokens
        if not of_prompt.any():
            # bytes, since a view would keep the whole message with all the other requests' records
            self._output.append(records.tobytes())
            return
        if self.prompt is not None:
            self.prompt[positions[of_prompt]] = records[of_prompt]
        if not of_prompt.all():
            self._output.append(records[~of_prompt].tobytes())

    def take(self, num_tokens: int) -> Records:
        """The output's records since the last call, up to its `num_tokens`-th token: tokens behind a stop string may
        have been scored too."""
        records = np.frombuffer(b"".join(self._output), LOGPROB)
        num_due = num_tokens - self._num_taken
        due, rest = records[:num_due], records[num_due:]
        self._num_taken += due.size
        self._output = [rest.tobytes()] if rest.size else []
        return due
