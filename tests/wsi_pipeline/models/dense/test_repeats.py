"""Distinct patches against a comparison of all pairs."""

import pytest
import torch

from wsi_pipeline.models.dense import repeats


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_distinct_patches_are_those_of_torch_unique(stride, dtype):
    torch.manual_seed(0)
    pixels = torch.randint(0, 2, (2, 7, 30)).to(dtype)
    patches = pixels.unfold(1, 3, stride).unfold(2, 3, stride).permute(1, 2, 0, 3, 4).flatten(0, 1)
    first, kind = repeats.find_distinct(pixels, 3, stride)
    assert len(first) == len(torch.unique(patches.flatten(1), dim=0))
    assert torch.equal(repeats.take_patches(pixels, 3, stride, first[kind]), patches)


def test_sums_that_meet_by_chance_make_no_patches_equal(monkeypatch):
    monkeypatch.setattr(repeats, "_ROW", 0)  # only the last row of a patch counts
    pixels = torch.rand(1, 6, 3)
    pixels[:, 2:] = 0.5
    first, kind = repeats.find_distinct(pixels, 3)
    assert torch.equal(first, torch.arange(4))
    assert torch.equal(kind, torch.arange(4))
