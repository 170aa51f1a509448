"""Iterative unveiling against a model of which the regions are known."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tests.wsi_pipeline.explain.networks import Linear, draw_images
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.unveiling import UnveilingSettings, smooth
from wsi_pipeline.models.base import PatchClassifier

unveiling = load_method("unveiling")
QUICK = UnveilingSettings(samples=8, noise=0.05)


class TwoDetectors(PatchClassifier):
    """p = 1 - (1 - d1)(1 - d2): either of two bright squares suffices; the first is stronger."""

    def __init__(self, side, gains=(40.0, 8.0)):
        super().__init__()
        self.options = {}
        self.gains = nn.Parameter(torch.tensor(gains))
        self.side = side
        self.relu = nn.ReLU()

    def places(self):
        return (slice(20, 20 + self.side),) * 2, (
            slice(22, 22 + self.side), slice(60, 60 + self.side)
        )  # fmt: skip

    def forward(self, x):
        means = torch.stack([x[:, :, rows, cols].mean((1, 2, 3)) for rows, cols in self.places()])
        z = self.gains[:, None] * (self.relu(means) - 0.5)
        against = F.softplus(z).sum(dim=0)  # -log(1 - p)
        return against + torch.log(-torch.expm1(-against))

    def draw(self):
        image = np.zeros((1, 60, 100, 3), np.uint8)
        for rows, cols in self.places():
            image[0, rows, cols] = 255
        return image


def test_each_round_unveils_a_region_until_the_class_is_no_longer_seen():
    model = TwoDetectors(11)
    first, second = model.places()
    (found,) = unveiling.explain(model, model.draw(), config=QUICK)
    rounds, details = found.details.rounds, found.details
    assert (len(rounds), details.stopped) == (2, "probability")
    assert details.target == 1
    assert rounds[0].mask[first].all()
    assert not rounds[0].mask[second].any()
    assert rounds[1].mask[second].all()
    assert not rounds[1].mask[first].any()
    assert (rounds[0].union <= rounds[1].union).all()
    assert [int(one.union.sum()) for one in rounds] == [421, 842]
    assert rounds[0].probability > 0.99
    assert rounds[1].probability > 0.9
    assert details.probability < 0.5
    # Covered by the mean of each channel over the image.
    mean = model.draw().mean() / 255
    assert np.allclose(rounds[1].image[rounds[0].union], mean)
    assert np.allclose(details.image[second], mean)
    # The map: 1 for what is found first, a fifth less a round later.
    assert np.unique(found.values).tolist() == pytest.approx([0, 0.8, 1])
    assert (found.values[first] == 1).all()


def test_the_class_is_fixed_by_the_original_image():
    model = TwoDetectors(11)
    (found,) = unveiling.explain(model, np.zeros((1, 60, 100, 3), np.uint8), config=QUICK)
    assert found.details.target == 0  # predicted
    (found,) = unveiling.explain(model, model.draw(), target=0, config=QUICK)
    assert (found.details.rounds, found.details.stopped) == ((), "probability")
    assert (found.values == 0).all()


def test_a_region_of_5_px_vanishes_and_is_reported():
    model = TwoDetectors(5)
    (found,) = unveiling.explain(model, model.draw(), config=QUICK)
    assert found.details.stopped == "empty mask"
    assert len(found.details.rounds) == 1
    assert not found.details.rounds[0].union.any()
    assert found.details.probability > 0.5


def test_it_stops_after_so_many_rounds():
    model = Linear(40, 40)
    with torch.no_grad():
        model.weight.abs_()
    config = UnveilingSettings(rounds=3, samples=2, kernel=3)
    (found,) = unveiling.explain(model, draw_images(1, 40, 40), config=config)
    assert (len(found.details.rounds), found.details.stopped) == (3, "rounds")


@pytest.mark.parametrize(("side", "area"), [(5, 0), (7, 177), (11, 421), (15, 665), (31, 1961)])
def test_smoothing_lets_regions_of_7_px_grow_and_drops_specks(side, area):
    mask = np.zeros((80, 80), bool)
    mask[24 : 24 + side, 24 : 24 + side] = True
    assert smooth(mask, kernel=11, times=3, share=0.25).sum() == area
    if side >= 7:
        by_times = [smooth(mask, kernel=11, times=n, share=0.25).sum() for n in range(4)]
        assert by_times == sorted(by_times)
        small, large = (smooth(mask, kernel=k, times=3, share=0.25).sum() for k in (5, 11))
        assert small < large


def test_smoothing_does_not_erode_at_the_border():
    """Zeros beyond it would."""
    whole = np.ones((40, 40), bool)
    assert smooth(whole, kernel=11, times=3, share=0.25).all()
    assert smooth(whole, kernel=11, times=1, share=1.0).all()


def test_the_files_hold_each_round(tmp_path):
    model = TwoDetectors(11)
    (found,) = unveiling.explain(model, model.draw(), config=QUICK)
    table, strip, arrays = found.details.write(tmp_path, "a.unveiling")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["union_px"] for row in rows] == ["421", "842", ""]
    assert [row["stopped"] for row in rows] == ["", "", "probability"]
    assert float(rows[2]["probability"]) == found.details.probability
    assert np.asarray(Image.open(strip)).shape == (2 * 60 + 6, 4 * 100 + 3 * 6, 3)
    with np.load(arrays) as file:
        assert file["saliency"].shape == (2, 60, 100)
        assert np.array_equal(file["union"][1], found.details.rounds[1].union)
    (none,) = unveiling.explain(model, model.draw(), target=0, config=QUICK)
    assert len(none.details.write(tmp_path, "b.unveiling")) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": 10}, "odd number of px, got 10"),
        ({"rounds": 0}, "at least 1 round"),
        ({"share": 1.5}, r"share is in \[0, 1\], got 1.5"),
        ({"samples": 0}, "at least 1 sample"),
    ],
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        UnveilingSettings(**wrong)
