"""The library under control, for every test of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.control import raftos_adapter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def raftos(tmp_path: Path) -> Any:
    """The patched library, with its logs in the test's own folder."""
    try:
        library = raftos_adapter.patched_raftos()
    except raftos_adapter.ControlNotInstalledError as error:
        pytest.fail(str(error), pytrace=False)
    raftos_adapter.configure(library, log_path=str(tmp_path))
    return library
