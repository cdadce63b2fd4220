"""Tokenizer folders and running frontends."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizer_files
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with the ChatML template."""
    path = tmp_path_factory.mktemp("tokenizer")
    return tokenizer_files.write(path, tokenizer_files.byte_level(), eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short path: ipc sockets allow about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="albireo-test-") as path:
        yield Path(path)
