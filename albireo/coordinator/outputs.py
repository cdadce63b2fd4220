"""From confirmed rows to messages: one `Tokens` per frontend and step, however many rows it has."""

import numpy as np
import numpy.typing as npt

from albireo.coordinator.results import ConfirmedLogprobs, ConfirmedRows
from albireo.messages import Admitted, Tokens


def token_messages(step: int, rows: ConfirmedRows, admitted: dict[int, list[Admitted]]) -> dict[int, Tokens]:
    """Messages by frontend index; a frontend with neither rows nor admissions gets none."""
    logprobs = rows.logprobs
    frontends = {*_distinct(rows.frontends), *admitted, *_distinct(logprobs.frontends)}
    if len(frontends) == 1:  # nothing to pick out
        (frontend,) = frontends
        return {frontend: _message(step, rows, admitted.get(frontend, []))}
    messages = {}
    for frontend in frontends:
        mine = rows.frontends == frontend
        asked = logprobs.frontends == frontend
        of_it = ConfirmedLogprobs(logprobs.frontends[asked], logprobs.request_ids[asked], logprobs.records[asked])
        its_rows = ConfirmedRows(
            rows.frontends[mine], rows.request_ids[mine], rows.tokens[mine], rows.finish[mine], of_it
        )
        messages[frontend] = _message(step, its_rows, admitted.get(frontend, []))
    return messages


def _distinct(frontends: npt.NDArray[np.int32]) -> list[int]:
    """Mostly there is one, and to see that is faster than to sort."""
    if frontends.size and (frontends == frontends[0]).all():
        return [int(frontends[0])]
    return np.unique(frontends).tolist() if frontends.size else []


def _message(step: int, rows: ConfirmedRows, admitted: list[Admitted]) -> Tokens:
    """All of `rows`, which are one frontend's."""
    return Tokens(
        step=step,
        request_ids=rows.request_ids.tobytes(),
        token_ids=rows.tokens.tobytes(),
        finish=rows.finish.tobytes(),
        admitted=admitted,
        logprob_request_ids=rows.logprobs.request_ids.tobytes(),
        logprobs=rows.logprobs.records.tobytes(),
    )
