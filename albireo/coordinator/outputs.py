"""From confirmed rows to messages: one `Tokens` per frontend and step, however many rows it has."""

import numpy as np

from albireo.coordinator.scheduler import ConfirmedRows
from albireo.messages import Admitted, Tokens


def token_messages(step: int, rows: ConfirmedRows, admitted: dict[int, list[Admitted]]) -> dict[int, Tokens]:
    """Messages by frontend index; a frontend with neither rows nor admissions gets none."""
    messages = {}
    for frontend in {*np.unique(rows.frontends).tolist(), *admitted}:
        mine = rows.frontends == frontend
        messages[frontend] = Tokens(
            step=step,
            request_ids=rows.request_ids[mine].tobytes(),
            token_ids=rows.tokens[mine].tobytes(),
            finish=rows.finish[mine].tobytes(),
            admitted=admitted.get(frontend, []),
        )
    return messages
