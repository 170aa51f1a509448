"""Dilation by bands, against scipy; what counts as ink."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tiling.tissue import ink
from tiling.tissue.colour import saturation_and_value, smooth_rows
from tiling.tissue.ink import classify, find_artefacts, widen


@settings(max_examples=80)
@given(
    shape=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    reach=st.tuples(st.integers(0, 45), st.integers(0, 12)),
    band=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_widening_is_dilation_by_a_rectangle(shape, reach, band, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.03
    before = mask.copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ink, "BAND_PX", band)
        wider = widen(mask, reach)

    rectangle = np.ones((2 * reach[0] + 1, 2 * reach[1] + 1), bool)
    expected = ndimage.binary_dilation(mask, rectangle) if mask.size else mask
    assert np.array_equal(wider, expected)
    assert np.array_equal(mask, before)


@pytest.mark.parametrize(
    ("colour", "is_artefact"),
    [
        ((25, 25, 30), True),  # black pen
        ((110, 108, 112), True),  # grey: a shadow
        ((20, 120, 60), True),
        ((40, 70, 180), True),
        ((60, 120, 200), True),
        ((205, 35, 45), True),
        ((200, 140, 190), False),  # H&E
        ((90, 60, 140), False),  # dense nuclei
        ((150, 160, 205), False),  # pale haematoxylin
        ((80, 90, 150), False),  # dense haematoxylin, as blue as it gets
        ((150, 100, 60), False),  # DAB
        ((90, 55, 35), False),  # dense DAB
        ((190, 70, 90), False),  # blood
        ((215, 90, 150), False),  # strong eosin
        ((240, 228, 236), False),  # faint H&E
    ],
)
def test_inks_and_stains_are_distinguished(colour, is_artefact):
    picture = np.full((9, 9, 3), colour, np.uint8)

    blurred = smooth_rows(picture, slice(0, 9), sigma=1.0)
    flags = classify(blurred, *saturation_and_value(blurred))
    found = find_artefacts(flags, mpp=(8.0, 8.0))

    assert found.all() == found.any() == is_artefact
