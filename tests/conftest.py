"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Examples take as long as a busy machine lets them; time is no property under test.
settings.register_profile("kdaudit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kdaudit")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and models: $KDAUDIT_SHARED, or `../shared` beside the checkout."""
    folder = Path(os.environ.get("KDAUDIT_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder} is not there (set KDAUDIT_SHARED)")
    return folder
