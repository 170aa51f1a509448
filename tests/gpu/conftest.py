"""The device that the tests in this folder run on."""

import os

import pytest
import torch

from tests.helpers.fake_store import FakeStore


@pytest.fixture
def device() -> torch.device:
    """The first GPU; `WSI_TEST_DEVICE=cpu` runs what needs no GPU memory on the CPU."""
    chosen = torch.device(os.environ.get("WSI_TEST_DEVICE", "cuda:0"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return chosen


@pytest.fixture
def gpu(device) -> torch.device:
    """A GPU and nothing else."""
    if device.type != "cuda":
        pytest.skip("needs the memory, streams or processes of a GPU")
    return device


@pytest.fixture
def fake_store() -> type[FakeStore]:
    return FakeStore
