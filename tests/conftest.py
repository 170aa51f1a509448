"""Fixtures of the tests of both packages."""

from pathlib import Path

import pytest

from tiling import content


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
