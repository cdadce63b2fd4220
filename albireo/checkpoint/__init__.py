"""What a checkpoint folder says about its model, read without torch: architecture, sizes, rope, EOS ids, defaults.

A leaf: the supervisor reads it before any process starts (so that a bad folder is one clear line), and hands the
result to the frontend, the coordinator and the workers as part of their configs. Nothing here runs code from a
checkpoint, and no weight is read: of a safetensors file only its header is.

structs.py          the frozen results: `ModelConfig`, `RopeConfig`, `GenerationDefaults`, `Checkpoint`
files.py            bounded reading of JSON files
model_config.py     config.json -> `ModelConfig`
families.py         what differs between Llama, Mistral, Qwen2 and Qwen3
rope.py             rope_scaling / rope_parameters -> `RopeConfig`
generation.py       generation_config.json -> `GenerationDefaults` and EOS ids
stored_tensors.py   safetensors headers: where each tensor lies
weight_shapes.py    which tensors a `ModelConfig` needs, and of what shape
reader.py           `read_checkpoint`: all of the above
"""

from albireo.checkpoint.reader import read_checkpoint
from albireo.checkpoint.structs import (
    Checkpoint,
    CheckpointError,
    GenerationDefaults,
    ModelConfig,
    RopeConfig,
    kv_bytes_per_block,
)
from albireo.checkpoint.weight_shapes import weight_bytes

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GenerationDefaults",
    "ModelConfig",
    "RopeConfig",
    "kv_bytes_per_block",
    "read_checkpoint",
    "weight_bytes",
]
