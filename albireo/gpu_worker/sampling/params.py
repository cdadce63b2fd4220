"""What a sampler does: the parameters it reads and the definition that every implementation follows to the token.

For each row, with `v` its logits as float32 (NaN counts as -inf) and `T` its temperature:

A. Adjustments, in float32, each operation rounded once, in this order:
   grammar              a token that is not in the slot's mask: -inf
   bad_words            a token that would complete one of the request's words with the newest output tokens: -inf
   min_tokens           below the slot's `min_position`, EOS and stop ids: -inf
   logit_bias           v + bias
   repetition_penalty   of tokens in prompt or output: v / penalty if v > 0, else v * penalty
   frequency_penalty    v - penalty * (times in the output)
   presence_penalty     v - penalty, of tokens in the output
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

Log-probabilities are those of the logits before A, at temperature 1: v - max(v) - log(M / 2^44) in float64, rounded
to float32, with M the sum of the tokens' masses (as in 4, T = 1). A token's rank is 1 + the number of tokens with a
larger logit.

The order in A and of 2 to 4 is vLLM's (v1/sample/sampler.py: the grammar's mask, bad words, min_tokens and logit_bias,
penalties, temperature, the argmax-invariant processors, of which min_p is one, then top_k and top_p), and so is
counting top_p's mass over what the others left. Ties differ: vLLM keeps all tokens equal to the k-th and sorts unstably
for top_p; here top_k = 1 is greedy, as its users expect.
A row whose largest logit is +inf or -inf gives the first token that has it.
"""

from typing import Protocol

import torch

from albireo.gpu_worker.sampling.interface import AdjustedRows
from albireo.gpu_worker.sampling.table import SamplingTable


class Sampler(Protocol):
    """Chooses one token for each row of a batch, each a whole vocabulary wide."""

    def sample(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        table: SamplingTable,
        out: torch.Tensor,
        adjusted: AdjustedRows | None = None,
    ) -> None:
        """Write the token of row r, a request in slot `slots[r]`, to `out[r]`; the logits are left as they are.

        logits     float32 or bfloat16 [n_rows, vocab], the last dimension contiguous; may be a view
        slots      int32 [n_rows]
        positions  int64 [n_rows]: position in its sequence of the token that is sampled
        out        int32 [n_rows]
        adjusted   step A's outcome for the rows that have one; None: no row has
        """
