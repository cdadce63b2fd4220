"""The model: its sizes, and the rates that it is trained with."""

from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from demo_training.tokenizer import END_OF_TEXT, IM_END, MAX_MODEL_TOKENS, PAD


@dataclass(frozen=True)
class Recipe:
    """The sizes and rates of the shipped model; 8 x 256 tokens a step."""

    vocab_size: int = 3072
    hidden_size: int = 192
    intermediate_size: int = 576
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64  # what attention kernels are compiled for
    context_tokens: int = 256  # half the attention work of 512, which comes in at `long_from`
    long_from: float = 0.85  # of the run
    batch_rows: int = 8
    muon_lr: float = 0.01
    adam_lr: float = 0.004
    weight_decay: float = 0.05
    warmup: float = 0.03  # of the run
    cooldown: float = 0.6  # of the run


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=MAX_MODEL_TOKENS,
        # What every reader of the format assumes when it does not know this key.
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        eos_token_id=tokenizer.token_to_id(IM_END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation("eager")  # compiled, it beats the CPU's flash kernel at these lengths
    return model
