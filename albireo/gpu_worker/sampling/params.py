"""What a sampler does: the parameters it reads and the definition that every implementation follows to the token.

For each row, with `v` its logits as float32 (NaN counts as -inf) and `T` its temperature:

0. T = 0: the largest logit, the smallest id among equals. The other parameters have no effect.
1. Order all tokens by falling logit and rising id. Each filter keeps a prefix of this order, so a token that ties
   with the last one kept is kept only if its id is smaller.
2. min_p > 0 keeps tokens of probability >= min_p times the largest: v >= max(v) + T log(min_p).
3. top_k > 0 keeps the first top_k tokens.
4. top_p < 1 keeps the shortest prefix whose mass reaches top_p of the mass that 2 and 3 left. A token's mass is
   floor(2^44 e^((v - max(v)) / T)): integers add up to the same sum in every order, on every device and rank count,
   where a float sum would keep a token more or less depending on the vector width.
5. Gumbel-max: the largest v / T + g wins, the smallest id among equals, in float64 (v times 1 / T), with
   g = -log(-log(u)), u = (x + 1/2) 2^-32 and x the token's word of Philox (`philox`), a function of seed, position
   and token id alone.

The order of 2 to 4 is vLLM's (v1/sample/sampler.py: temperature, the argmax-invariant processors, of which min_p is
one, then top_k and top_p), and so is counting top_p's mass over what the others left. Ties differ: vLLM keeps all
tokens equal to the k-th and sorts unstably for top_p; here top_k = 1 is greedy, as its users expect.
A row whose largest logit is +inf or -inf gives the first token that has it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class SamplingTable:
    """Sampling parameters on the device, one entry per request slot.

    The worker's state owns the tensors and writes a slot's entries when a request is admitted to it.
    """

    temperature: torch.Tensor
    """float32 [num_slots]; 0 is greedy"""
    top_p: torch.Tensor
    """float32 [num_slots], in (0, 1]; 1 is off"""
    min_p: torch.Tensor
    """float32 [num_slots], in [0, 1]; 0 is off"""
    top_k: torch.Tensor
    """int32 [num_slots]; 0 is off"""
    seed: torch.Tensor
    """int64 [num_slots]: the bits of the request's uint64 seed"""


class Sampler(Protocol):
    """Chooses one token for each row of a batch."""

    def sample(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        table: SamplingTable,
        out: torch.Tensor,
    ) -> None:
        """Write the token of row r, a request in slot `slots[r]`, to `out[r]`; the logits are left as they are.

        logits     float32 or bfloat16 [n_rows, vocab], the last dimension contiguous; may be a view
        slots      int32 [n_rows]
        positions  int64 [n_rows]: position in its sequence of the token that is sampled
        out        int32 [n_rows]
        """
