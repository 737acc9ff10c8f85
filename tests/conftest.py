"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# Tiny models lose time on many threads, and the tests run on all cores side by side. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real text that projects share: `ULMFIT_DATA`, taken from the project's root when relative."""
    folder = (PROJECT / os.environ.get("ULMFIT_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set ULMFIT_DATA to its folder")
    return folder
