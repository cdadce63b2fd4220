"""The folder that is served."""

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3ForCausalLM

from demo_training.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, IM_END, PAD, TOKENIZER_CONFIG


def export(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model` in bf16 in the Hugging Face layout, each file put in place whole: a server may be loading it."""
    half = Qwen3ForCausalLM(model.config).bfloat16()
    half.load_state_dict(model.state_dict())
    half.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        eos_token_id=[tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT)],
        pad_token_id=tokenizer.token_to_id(PAD),
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        half.save_pretrained(scratch)
        tokenizer.save(f"{scratch}/tokenizer.json")
        Path(scratch, "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
        Path(scratch, "chat_template.jinja").write_text(CHAT_TEMPLATE)
        for path in Path(scratch).iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)
