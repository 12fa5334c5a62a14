from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine is no failure
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data: ``LLMREC_DATA``, else ``../shared/data`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LLMREC_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set LLMREC_DATA")
    return folder
