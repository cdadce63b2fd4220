"""Folders of well-known shapes, as tools/sim_models.py writes them."""

import math
from pathlib import Path

import pytest
from sim_models import SHAPES, write_model

from albireo.checkpoint import read_checkpoint
from albireo.checkpoint.weight_shapes import weight_shapes

BILLIONS = {
    "qwen3-0.6b": 0.596, "qwen3-4b": 4.022, "qwen3-8b": 8.191, "qwen3-14b": 14.768, "qwen3-32b": 32.762,
    "llama-3.1-8b": 8.030, "llama-3.1-70b": 70.554, "mistral-7b": 7.248,
}  # fmt: skip
"""Parameters, as the models' pages give them."""


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_parameters_as_the_model_it_is_named_for(name: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(write_model(tmp_path, name)), check_weights=False)
    parameters = sum(math.prod(shape) for shape in weight_shapes(checkpoint.model).values())
    assert parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.001)
    assert checkpoint.model.dtype == "bfloat16"
