"""Scores to raster, compared with a loop over every pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps import rasters as heatmaps
from wsi_pipeline.heatmaps.rasters import choose_pixel, rasterise_scores

sides = st.tuples(st.integers(1, 13), st.integers(1, 13))


def brute_force(coords, scores, size, patch, pixel, overlap):
    """The definition, one heatmap pixel at a time."""
    height, width = -(-size[1] // pixel[1]), -(-size[0] // pixel[0])
    out = np.full((height, width), np.nan)
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) * pixel[0], (row + 0.5) * pixel[1]
            over = [
                (
                    float(score),
                    nearness(x, left, patch[0], pixel[0]) * nearness(y, top, patch[1], pixel[1]),
                )
                for (left, top), score in zip(coords.tolist(), scores, strict=True)
                if left <= x < left + patch[0] and top <= y < top + patch[1] and score == score
            ]
            if over and overlap == "max":
                out[row, column] = max(score for score, _ in over)
            elif over:
                weights = [weight if overlap == "centre" else 1 for _, weight in over]
                total = sum(w * score for w, (score, _) in zip(weights, over, strict=True))
                out[row, column] = total / sum(weights)
    return out


def nearness(centre, start, length, pixel):
    """1 - |distance from the middle| / half of the side, in the pixels that a patch covers."""
    covered = [(k + 0.5) * pixel for k in range(-100, 100)]
    covered = [c for c in covered if start <= c < start + length]
    n, k = len(covered), covered.index(centre)
    return 1 - abs(k + 0.5 - n / 2) / (n / 2)


@st.composite
def cases(draw, *, lattice):
    """A slide, patches on it and a pixel size."""
    size = draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    patch, stride = draw(sides), draw(sides)
    n = draw(st.integers(0, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if lattice:
        axes = [rng.integers(0, -(-size[a] // stride[a]), n) * stride[a] for a in (0, 1)]
    else:
        axes = [rng.integers(1 - patch[a], size[a], n) for a in (0, 1)]
    scores = rng.random(n).astype(np.float32)
    scores[rng.random(n) < 0.2] = np.nan
    pixel = draw(
        st.none() | st.tuples(st.integers(1, patch[0]), st.integers(1, patch[1])),
    )
    return np.stack(axes, axis=1).astype(np.int64), scores, size, patch, stride, pixel


@pytest.mark.parametrize("band_px", [1, 200, 1 << 19], ids=["row-bands", "bands", "one-band"])
@pytest.mark.parametrize("overlap", ["mean", "max", "centre"])
@pytest.mark.parametrize("lattice", [True, False], ids=["lattice", "anywhere"])
def test_heatmap_equals_the_loop_over_pixels(lattice, overlap, band_px, monkeypatch):
    monkeypatch.setattr(heatmaps, "_BAND_PX", band_px)

    @settings(max_examples=40)
    @given(cases(lattice=lattice))
    def check(case):
        coords, scores, size, patch, stride, pixel = case
        heatmap = rasterise_scores(
            coords,
            scores,
            slide_size=size,
            patch_l0=patch,
            stride_l0=stride,
            overlap=overlap,
            pixel_l0=pixel,
        )
        expected = brute_force(coords, scores, size, patch, heatmap.pixel_l0, overlap)
        assert heatmap.values.dtype == np.float32
        assert heatmap.values.shape == expected.shape
        np.testing.assert_allclose(heatmap.values, expected, atol=1e-6)

    check()


@pytest.mark.parametrize("overlap", ["mean", "max", "centre"])
@settings(max_examples=40)
@given(
    score=st.floats(0, 1, width=32),
    stride=st.integers(1, 40),
    patch=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_constant_score_gives_exactly_that_constant(score, stride, patch, seed, overlap):
    coords = np.random.default_rng(seed).integers(0, 200, (500, 2))

    heatmap = rasterise_scores(
        coords,
        np.full(500, score, np.float32),
        slide_size=(200, 200),
        patch_l0=(patch, patch),
        stride_l0=(stride, stride),
        overlap=overlap,
    )

    scored = heatmap.values[~np.isnan(heatmap.values)]
    assert (scored == np.float32(score)).all()


def test_unreadable_patch_leaves_a_hole_and_does_not_dim_its_neighbours():
    heatmap = rasterise_scores(
        np.array([[0, 0], [4, 0], [8, 0]]),
        np.array([0.8, np.nan, 0.4], np.float32),
        slide_size=(16, 4),
        patch_l0=(4, 4),
        stride_l0=(4, 4),
    )

    np.testing.assert_array_equal(heatmap.values, np.array([[0.8, np.nan, 0.4, np.nan]], "f4"))


def test_holes_do_not_warn_of_a_division_by_zero():
    """A running sum leaves a rounding's rest over a hole; dividing it by 0 gave a warning."""
    coords = np.array([(x, y) for y in (0, 96, 480) for x in (0, 96, 192, 576)])
    scores = (10.0 ** np.random.default_rng(0).uniform(-30, 0, len(coords))).astype(np.float32)
    heatmap = rasterise_scores(
        coords, scores, slide_size=(704, 608), patch_l0=(128, 128), stride_l0=(96, 96)
    )
    assert np.isnan(heatmap.values[8:12, :]).all()
    assert not np.isinf(heatmap.values).any()


def test_what_rounding_leaves_over_a_hole_is_no_score():
    """Running sums of scores of many magnitudes do not end at 0 where nothing was scored."""
    x, y = np.meshgrid(np.arange(0, 600, 25), np.arange(0, 600, 25))
    coords = np.stack([x, y], axis=-1).reshape(-1, 2)
    coords = coords[np.abs(coords - 300).max(axis=1) >= 130]
    scores = (10.0 ** -np.random.default_rng(0).uniform(0, 14, len(coords))).astype(np.float32)
    frame = {"slide_size": (800, 800), "patch_l0": (75, 75), "stride_l0": (25, 25)}

    heatmap = rasterise_scores(coords, scores, **frame)

    covered = rasterise_scores(coords, np.ones_like(scores), **frame)
    np.testing.assert_array_equal(np.isnan(heatmap.values), np.isnan(covered.values))


def test_all_scores_unreadable_gives_an_empty_heatmap():
    heatmap = rasterise_scores(
        np.array([[0, 0]]),
        np.array([np.nan], np.float32),
        slide_size=(9, 5),
        patch_l0=(4, 4),
        stride_l0=(4, 4),
    )

    assert heatmap.values.shape == (2, 3)
    assert np.isnan(heatmap.values).all()


def test_hot_patch_covers_its_own_level_0_pixels_and_no_other():
    patch, stride = (512, 300), (256, 150)
    coords = np.array([[x, y] for y in range(0, 3000, 150) for x in range(0, 5000, 256)])
    scores = np.zeros(len(coords), np.float32)
    hot = int(np.flatnonzero((coords == (1024, 900)).all(axis=1))[0])
    scores[hot] = 1

    heatmap = rasterise_scores(
        coords, scores, slide_size=(6001, 3407), patch_l0=patch, stride_l0=stride, overlap="max"
    )

    rows, columns = np.nonzero(heatmap.values == 1)
    pixel_x, pixel_y = heatmap.pixel_l0
    box = columns.min() * pixel_x, rows.min() * pixel_y
    end = (columns.max() + 1) * pixel_x, (rows.max() + 1) * pixel_y
    assert (box, end) == ((1024, 900), (1024 + 512, 900 + 300))
    assert heatmap.values.shape == (-(-3407 // pixel_y), -(-6001 // pixel_x))


def test_order_of_the_patches_does_not_matter():
    rng = np.random.default_rng(3)
    coords, scores = rng.integers(0, 900, (300, 2)), rng.random(300).astype(np.float32)
    order = rng.permutation(300)
    kwargs = {"slide_size": (1000, 1000), "patch_l0": (100, 100), "stride_l0": (40, 40)}

    one = rasterise_scores(coords, scores, **kwargs).values
    other = rasterise_scores(coords[order], scores[order], **kwargs).values

    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("patch", "stride", "pixel"),
    [
        ((512, 512), (512, 512), (512, 512)),
        ((512, 512), (256, 384), (256, 128)),
        ((1053, 1053), (526, 527), (132, 132)),
        ((3, 3), (100, 100), (3, 3)),
        ((1, 1), (1, 1), (1, 1)),
    ],
)
def test_pixel_is_the_common_divisor_or_a_quarter_of_the_stride(patch, stride, pixel):
    assert choose_pixel(patch, stride) == pixel


def test_pixels_are_about_square_where_x_and_y_differ_by_a_rounding():
    assert choose_pixel((1024, 1022), (256, 255)) == (64, 64)


def test_patches_between_the_lattice_get_finer_pixels():
    """Once shifted by up to half a patch: squares of other tools begin anywhere."""
    coords = np.array([[101, 39], [165, 39]])
    heatmap = rasterise_scores(
        coords,
        np.array([0.2, 0.8], np.float32),
        slide_size=(640, 320),
        patch_l0=(64, 64),
        stride_l0=(64, 64),
    )
    assert heatmap.pixel_l0 == (16, 16)
    rows, columns = np.nonzero(heatmap.values > 0.5)
    assert abs(columns.min() * 16 - 165) <= 8
    assert abs(rows.min() * 16 - 39) <= 8
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (4, 4)


def test_all_corners_at_one_remainder_of_a_coarser_lattice_keep_its_pixels():
    coords = np.array([[32, 96], [96, 32]])
    assert choose_pixel((64, 64), (64, 64), coords) == (32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([1.5], "f4")}, "are these logits"),
        ({"coords": np.array([[0, 0, 0]])}, "coords must be"),
        ({"coords": np.array([[100, 0]])}, "scored on another slide"),
        ({"coords": np.array([[0, -10]])}, "scored on another slide"),
        ({"patch_l0": (0, 4)}, "at least one level-0 pixel"),
        ({"pixel_l0": (20, 20)}, "larger than a patch"),
    ],
    ids=["logit", "shape", "right-of-slide", "above-slide", "no-patch", "coarse-pixel"],
)
def test_bad_input_is_reported(change, message):
    good = {
        "coords": np.array([[0, 0]]),
        "scores": np.array([0.5], np.float32),
        "slide_size": (100, 100),
        "patch_l0": (10, 10),
        "stride_l0": (10, 10),
    }
    with pytest.raises(HeatmapError, match=message):
        rasterise_scores(**(good | change))
