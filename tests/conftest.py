"""Fixtures of the tests of both packages, and how their properties are searched.

The examples of hypothesis are the same in every run, and none is too slow for a busy machine. To
search among others: ``HYPOTHESIS_PROFILE=search make test``.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tiling.listing import content

settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def settled_contents(monkeypatch) -> None:
    """Digests of slides are kept at once, however new the files are, and no longer than a test."""
    monkeypatch.setattr(content, "RECENT_NS", 0)
    monkeypatch.setattr(content, "_known", {})


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the slides' files that are read to digest them, in order."""
    found: list[str] = []
    digest_file = content.digest_file

    def recording(path: Path) -> str:
        found.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(content, "digest_file", recording)
    return found
