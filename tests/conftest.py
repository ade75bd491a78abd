"""Shared fixtures."""

import pathlib

import pytest

_SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder beside the checkout with real videos, official annotations and golden outputs."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs the real data in {_SHARED.name}/ beside the checkout, which is absent")
    return _SHARED
