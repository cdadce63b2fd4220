"""Fixtures for every test folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# machines are shared and noisy: no example fails for having taken long
settings.register_profile("albireo", deadline=None)
settings.load_profile("albireo")

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any is imported


SLOW_TIMEOUT_S = 600
"""Of a test that is marked slow and says nothing else; several start five servers one after the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoints.write_checkpoint` without the path: each distinct checkpoint is written once a session."""
    written: dict[tuple[Any, ...], Path] = {}

    def make(family: str, **settings: Any) -> Path:
        from checkpoints import write_checkpoint  # imports transformers: seconds, only for tests that need it

        key = (family, *sorted((name, repr(value)) for name, value in settings.items()))
        if key not in written:
            path = tmp_path_factory.mktemp(family)
            written[key] = write_checkpoint(path, family, **settings)  # type: ignore[arg-type]
        return written[key]

    return make
