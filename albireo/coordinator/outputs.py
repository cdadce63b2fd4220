"""From confirmed rows to messages: one `Tokens` per frontend and step, however many rows it has."""

import numpy as np

from albireo.coordinator.results import ConfirmedRows
from albireo.messages import Admitted, Tokens


def token_messages(step: int, rows: ConfirmedRows, admitted: dict[int, list[Admitted]]) -> dict[int, Tokens]:
    """Messages by frontend index; a frontend with neither rows nor admissions gets none."""
    messages = {}
    logprobs = rows.logprobs
    scored = np.unique(logprobs.frontends).tolist() if logprobs.records.size else ()
    for frontend in {*np.unique(rows.frontends).tolist(), *admitted, *scored}:
        mine = rows.frontends == frontend
        asked = logprobs.frontends == frontend
        messages[frontend] = Tokens(
            step=step,
            request_ids=rows.request_ids[mine].tobytes(),
            token_ids=rows.tokens[mine].tobytes(),
            finish=rows.finish[mine].tobytes(),
            admitted=admitted.get(frontend, []),
            logprob_request_ids=logprobs.request_ids[asked].tobytes(),
            logprobs=logprobs.records[asked].tobytes(),
        )
    return messages
