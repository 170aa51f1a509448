"""Fixtures of the tests of exports."""

import pytest

from tests.helpers.odd_slide import make_slide
from wsi_pipeline.exports.base import ExportSlide


@pytest.fixture(scope="session")
def slide() -> ExportSlide:
    return make_slide()
