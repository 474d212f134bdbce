"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from jevons.engine.pull import pull

# One profile for everywhere: seeded, so that a red run can be run again; no deadline, for shared machines.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Captured events, traces and ground truth kept beside the project; a clone of the project alone has none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the captured data at {SHARED}, which is not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The embedded model, fetched the first time."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return pull("smollm2-135m")
