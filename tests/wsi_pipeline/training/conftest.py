"""Fixtures of the tests of training."""

import pytest

from tests.helpers.tiny_training import contents, train


@pytest.fixture
def undisturbed(fake_store, tmp_path):
    train(fake_store, tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")
