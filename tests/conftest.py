"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark files; a test that needs it is skipped where it is missing."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MOPD_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no benchmark files at {folder}: set MOPD_SHARED_DATA to their folder")
    return folder
