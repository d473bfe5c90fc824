"""The pytest fixture `hub`; a conftest imports it: `from hub.fixtures import hub as hub`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import TestHub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    """A new, empty Hub; the client's connections in this process are closed before it stops."""
    with TestHub.start(tmp_path) as running:
        yield running
        if "huggingface_hub" in sys.modules:
            from huggingface_hub import close_session

            close_session()
