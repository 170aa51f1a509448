"""Classic features: lengths, what turning an image does to them, scaling (paper 1, appendix B)."""

import numpy as np
import pytest
from skimage.measure import label, regionprops

from wsi_pipeline.baselines import textures as baselines
from wsi_pipeline.baselines.textures import (
    COMBINATIONS,
    extract_features,
    fit_classifier,
    haralick,
    lbp,
    list_rows,
    pftas,
    shape,
    zernike,
)
from wsi_pipeline.errors import ModelError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (64, 64, 1), np.uint8)
RGB = RANDOM.integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "grey", "colour"),
    [("pftas", 54, 162), ("haralick", 13, 13), ("zernike", 25, 25), ("lbp", 36, 36)],
)
def test_lengths_are_those_of_the_papers_library(name, grey, colour):
    assert extract_features(GREY, [name])[name].shape == (grey,)
    assert extract_features(RGB, [name])[name].shape == (colour,)


def test_pftas_of_a_colour_image_is_that_of_each_channel():
    """mahotas takes (H, W, 3) for a volume: 162 other values, by accident as many."""
    import mahotas

    by_channel = [mahotas.features.pftas(np.array(RGB[..., k])) for k in range(3)]
    assert np.array_equal(pftas(RGB), np.concatenate(by_channel))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_change_of_one_channel_changes_the_54_values_of_that_channel_alone(channel):
    """Mirrored, its 54 values stay the same; inverted, other channels' stay the same."""
    mirrored, inverted = RGB.copy(), RGB.copy()
    mirrored[..., channel] = mirrored[:, ::-1, channel]
    inverted[..., channel] = 255 - inverted[..., channel]
    own = np.zeros(162, bool)
    own[54 * channel : 54 * (channel + 1)] = True

    assert np.array_equal(pftas(mirrored), pftas(RGB))
    changed = pftas(inverted) != pftas(RGB)
    assert not changed[~own].any()
    assert changed[own].mean() > 0.9


@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "colour"])
def test_mahotas_is_never_given_a_volume(image, monkeypatch):
    """Every function of mahotas that takes an image reads a third axis as depth."""
    seen = []

    def noting(function):
        def note(array, *args, **kwargs):
            seen.append(array.ndim)
            return function(array, *args, **kwargs)

        return note

    for name in ("pftas", "haralick", "zernike_moments", "lbp", "eccentricity", "roundness"):
        monkeypatch.setattr(baselines.mh, name, noting(getattr(baselines.mh, name)))
    extract_features(image, [*baselines.FEATURES, "shape"], mask=disc(20)[28:92, 28:92])
    assert len(seen) == image.shape[2] + 5
    assert set(seen) == {2}


@pytest.mark.parametrize(
    ("feature", "tolerance"), [(zernike, 1e-12), (pftas, 0), (haralick, 1e-12)]
)
def test_a_quarter_turn_changes_no_feature(feature, tolerance):
    found, turned = feature(GREY), feature(np.ascontiguousarray(np.rot90(GREY)))
    assert np.abs(found - turned).max() <= tolerance


def test_patterns_are_shares_of_the_pixels():
    """Their counts change with a turn (mahotas interpolates): nothing is asserted of that."""
    assert lbp(GREY).sum() == pytest.approx(1)
    flat = lbp(np.full((20, 20, 1), 9, np.uint8))
    assert flat.max() == 1


def disc(radius, stretch=1):
    rows, columns = np.mgrid[:121, :121] - 60
    return rows**2 + (columns / stretch) ** 2 < radius**2


def test_shapes_are_mahotas():
    """Roundness is perimeter^2 / (4 pi area) of pixels: it grows with elongation."""
    area, eccentricity, roundness = shape(disc(20))
    assert area == disc(20).sum()
    assert eccentricity == pytest.approx(0, abs=1e-6)
    assert roundness == pytest.approx(0.8018, abs=1e-4)
    _, eccentricity, longer = shape(disc(10, stretch=2))
    assert eccentricity == pytest.approx(0.8726, abs=1e-4)  # ideal: 0.8660
    assert longer == pytest.approx(0.9988, abs=1e-4)
    assert longer > roundness


def test_eccentricity_is_that_of_another_library():
    mask = disc(12, stretch=1.7)
    (region,) = regionprops(label(mask))
    assert shape(mask)[1] == pytest.approx(region.eccentricity, abs=1e-6)


def test_no_object_has_no_shape():
    with pytest.raises(ModelError, match="mask without an object"):
        shape(np.zeros((5, 5), bool))
    with pytest.raises(ModelError, match="need a mask"):
        extract_features(GREY, ["shape"])


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_image_has_finite_features(value):
    flat = np.full((32, 40, 3), value, np.uint8)
    for found in extract_features(flat, list(baselines.FEATURES)).values():
        assert np.isfinite(found).all()


def test_other_images_and_kinds_are_refused():
    with pytest.raises(ModelError, match="float32"):
        extract_features(np.zeros((8, 8, 3), np.float32), ["pftas"])
    with pytest.raises(ModelError, match="unknown features 'sift'"):
        extract_features(RGB, ["sift"])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 3), (9, 1, 1)])
def test_a_single_row_of_pixels_is_refused_as_too_small(shape):
    """mahotas raises a ValueError of its own, which ended the whole table."""
    with pytest.raises(ModelError, match="at least 2 x 2 px"):
        extract_features(np.zeros(shape, np.uint8), ["haralick"])


def test_an_image_that_cannot_be_written_to_is_no_hindrance():
    locked = RGB[::2, ::2]
    locked.flags.writeable = False
    assert extract_features(locked, ["pftas", "haralick"])["pftas"].shape == (162,)


# ------------------------------------------------------------ classifiers


def two_clouds(n=40, width=5):
    random = np.random.default_rng(1)
    y = np.arange(n) % 2
    return random.normal(0, 1, (n, width)) * [1, 10, 100, 1000, 0.1] + y[:, None] * 3, y


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_scaling_is_fitted_on_training_data_alone(kind):
    x, y = two_clouds()
    model = fit_classifier(kind, x[:20], y[:20])
    assert model["scale"].mean_ == pytest.approx(x[:20].mean(0))
    assert model["scale"].scale_ == pytest.approx(x[:20].std(0))
    before = model.predict(x[20:25])
    assert np.array_equal(model.predict(np.concatenate([x[20:25], x[25:] * 100]))[:5], before)


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_the_classifiers_are_linear(kind):
    x, y = two_clouds()
    model = fit_classifier(kind, x, y)
    middle = (x[:10] + x[10:20]) / 2
    expected = (model.decision_function(x[:10]) + model.decision_function(x[10:20])) / 2
    assert model.decision_function(middle) == pytest.approx(expected)


def test_one_class_is_nothing_to_learn_from():
    with pytest.raises(ModelError, match="both classes"):
        fit_classifier("svm", np.zeros((3, 2)), np.zeros(3, int))


def test_the_seven_combinations_are_all_there_are():
    assert {frozenset(names) for names in COMBINATIONS} == {
        frozenset(name for bit, name in enumerate(("pftas", "haralick", "zernike")) if n >> bit & 1)
        for n in range(1, 8)
    }
    assert len(list_rows(with_shape=False)) == 14
    assert list_rows(with_shape=True)[-1].features == ("shape", "lbp", "pftas")
