"""Fixtures shared by the tests of `wsi_pipeline`."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.helpers.fake_store import FakeStore
from tests.helpers.quick_pictures import quick_pictures
from tests.helpers.tiny_cohort import draw_cohort, write_config
from wsi_pipeline.cli.app import main

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background: children too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _quick_pictures(request):
    """Draw no figures, but in modules with the mark `real_pictures`; see `quick_pictures`."""
    if request.node.get_closest_marker("real_pictures"):
        yield
    else:
        with quick_pictures():
            yield


@pytest.fixture
def fake_store() -> type[FakeStore]:
    return FakeStore


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A run that went through every stage; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    draw_cohort(folder / "data")
    with quick_pictures():
        config = write_config(folder, folder / "data", folder / "run")
        assert main(["run", str(config), "--quiet"]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of that run, to be changed."""
    shutil.copytree(finished, tmp_path / "copy")
    folder = tmp_path / "copy"
    write_config(folder, folder / "data", folder / "run")
    return folder
