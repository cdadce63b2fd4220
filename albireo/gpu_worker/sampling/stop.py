"""Which of a step's tokens end their requests, decided where the tokens are."""

import numpy as np
import numpy.typing as npt

from albireo.messages import Finish

Int32s = npt.NDArray[np.int32]


def check_stop(tokens: Int32s, slots: Int32s, stop_ids: Int32s, num_eos: Int32s, num_stop: Int32s) -> Int32s:
    """`Finish.EOS`, `Finish.STOP_TOKEN` or `Finish.NONE` for each row, int32 [n_rows].

    tokens, slots      int32 [n_rows]
    stop_ids           int32 [num_slots, width]: a slot's `num_eos` EOS ids, then its `num_stop` stop ids
    num_eos, num_stop  int32 [num_slots]
    An id that is both counts as EOS. Entries behind the stop ids are never read as ids, whatever they hold.
    """
    hits = stop_ids[slots] == tokens[:, None]
    finish = np.zeros(tokens.size, np.int32)
    rows = np.flatnonzero(hits.any(axis=1))
    if rows.size:  # on most steps nothing ends, and nothing more is looked at
        first = hits[rows].argmax(axis=1)
        end_of_eos = num_eos[slots[rows]]
        is_stop = first < end_of_eos + num_stop[slots[rows]]
        finish[rows] = np.where(first < end_of_eos, Finish.EOS, np.where(is_stop, Finish.STOP_TOKEN, Finish.NONE))
    return finish
