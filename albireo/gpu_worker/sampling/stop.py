"""Which of a step's tokens end their requests, decided on the device."""

import torch

from albireo.messages import Finish


def check_stop(
    tokens: torch.Tensor,
    slots: torch.Tensor,
    stop_ids: torch.Tensor,
    num_eos: torch.Tensor,
    num_stop: torch.Tensor,
    finish: torch.Tensor,
) -> None:
    """Write `Finish.EOS`, `Finish.STOP_TOKEN` or `Finish.NONE` for each row into `finish`, int32 [n_rows].

    tokens, slots      int32 [n_rows]
    stop_ids           int32 [num_slots, width]: a slot's `num_eos` EOS ids, then its `num_stop` stop ids
    num_eos, num_stop  int32 [num_slots]
    An id that is both counts as EOS. Entries behind the stop ids are never read as ids, whatever they hold.
    """
    width = stop_ids.shape[1]
    columns = torch.arange(width, dtype=torch.int32, device=tokens.device)
    hits = stop_ids.index_select(0, slots) == tokens.unsqueeze(1)
    first = torch.where(hits, columns, width).amin(1)
    end_of_eos = num_eos.index_select(0, slots)
    end = end_of_eos + num_stop.index_select(0, slots)
    finish.fill_(Finish.NONE)
    finish.masked_fill_(first < end, Finish.STOP_TOKEN)
    finish.masked_fill_(first < end_of_eos, Finish.EOS)
