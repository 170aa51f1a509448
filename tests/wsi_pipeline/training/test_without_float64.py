"""Training on a device that has no float64, such as the GPU of a Mac.

The device is the CPU here; what left it is marked, and only that may become float64.
"""

from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.helpers.tiny_training import TINY, rows_of, train
from wsi_pipeline.config.settings import AugmentConfig, PreprocessConfig

EVERYTHING = AugmentConfig(rotate_180=True, zoom=1.2, stain=0.05)
CROPPED = replace(TINY.model, preprocess=PreprocessConfig(crop=(10, 10)))


class OnHost(torch.Tensor):
    """A tensor that was fetched from the device."""


class NoFloat64(TorchFunctionMode):
    """Refuses float64 tensors made on the device, or of what is on it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return made.as_subclass(OnHost)
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            near = [t for t in given if t.dtype == torch.float32 and not isinstance(t, OnHost)]
            moved = func is torch.Tensor.to and any(isinstance(a, torch.device) for a in args)
            if near or moved or kwargs.get("device") is not None:
                raise TypeError(f"{func} makes float64 on the device")
        return made


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, accumulate=2, augment=EVERYTHING, model=CROPPED, monitor="loss")],
    ids=["plain", "all augmentation, in parts"],
)
def test_no_float64_is_made_on_the_device(fake_store, tmp_path, config):
    train(fake_store, tmp_path / "anywhere", config)
    with NoFloat64():
        train(fake_store, tmp_path / "without", config)
    histories = [rows_of(tmp_path / name / "history.csv") for name in ("anywhere", "without")]
    for row in (*histories[0], *histories[1]):
        row.pop("seconds")
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.double(),
        lambda x: torch.zeros((), dtype=torch.float64, device=x.device),
        lambda x: torch.zeros((), dtype=torch.float64).add_(x.sum()),
        lambda x: torch.ones(2, dtype=torch.float64).to(x.device),
    ],
    ids=["cast", "factory", "sum", "moved"],
)
def test_the_guard_finds_what_such_a_device_refuses(make):
    with NoFloat64(), pytest.raises(TypeError, match="makes float64 on the device"):
        make(torch.ones(3))
