"""Stain normalisation: the published algorithms, on images whose stains are known."""

import logging

import numpy as np
import pytest

from wsi_pipeline.cohort.stain_view import (
    NormalisedPatches,
    fit_slide_map,
    normalise_image,
    normalise_patches,
)
from wsi_pipeline.cohort.stains import (
    LIGHT,
    PIXELS_AT_ONCE,
    REFERENCE_AMOUNTS,
    REFERENCE_DEVIATION,
    REFERENCE_MEAN,
    REFERENCE_STAINS,
    fit_stains,
)
from wsi_pipeline.errors import ConfigError, StainError

METHODS = ("macenko", "reinhard")
PURPLE = np.array([[0.62, 0.36], [0.69, 0.76], [0.37, 0.54]])  # haematoxylin, eosin
BLUE = np.array([[0.75, 0.30], [0.60, 0.88], [0.28, 0.37]])


def unit(stains):
    return stains / np.linalg.norm(stains, axis=0)


def amounts_of(n=6000, seed=0):
    """Amounts of two stains in each of n pixels, (n, 2): some are of one stain alone."""
    random = np.random.default_rng(seed)
    amounts = random.uniform(0.4, 1.5, (n, 2))
    amounts[: n // 10, 1] = 0
    amounts[n // 10 : n // 5, 0] = 0
    return amounts


def stain(stains, amounts):
    """Colours of stains, (3, 2), in these amounts, by Macenko's formula."""
    values = LIGHT * np.exp(-amounts @ stains.T) - 1
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("stains", [PURPLE, BLUE], ids=["purple", "blue"])
@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_macenko_finds_the_stains_and_gives_those_of_the_reference(stains, strength):
    amounts = amounts_of() * strength + (amounts_of() > 0) * 0.3
    pixels = stain(unit(stains), amounts)

    found = fit_stains(pixels, "macenko")

    np.testing.assert_allclose(found.stains, unit(stains), atol=0.02)
    most = np.percentile(amounts, 99, axis=0)
    np.testing.assert_allclose(found.amounts, most, rtol=0.03)
    expected = stain(REFERENCE_STAINS, amounts / most * REFERENCE_AMOUNTS)
    assert np.abs(found(pixels).astype(int) - expected).max() <= 8
    assert np.abs(found(pixels).astype(int) - expected).mean() < 1.5


@pytest.mark.parametrize("method", METHODS)
def test_large_images_are_mapped_as_their_parts(method):
    pixels = stain(unit(PURPLE), amounts_of(2 * (PIXELS_AT_ONCE + 7))).reshape(2, -1, 3)
    found = fit_stains(stain(unit(PURPLE), amounts_of()), method)
    mapped = found(pixels)
    assert mapped.shape == pixels.shape
    rows = pixels[:, ::2], pixels[:, 1::2]  # not contiguous
    np.testing.assert_array_equal(mapped[:, ::2], found(rows[0]))
    np.testing.assert_array_equal(mapped[:, 1::2], found(rows[1]))


def test_an_image_of_the_reference_is_left_as_it_is():
    amounts = amounts_of() * 0.8 + (amounts_of() > 0) * 0.7
    amounts *= REFERENCE_AMOUNTS / np.percentile(amounts, 99, axis=0)
    pixels = stain(unit(REFERENCE_STAINS), amounts)

    found = fit_stains(pixels, "macenko")

    assert np.abs(found(pixels).astype(int) - pixels).max() <= 4


def published_macenko(image):
    """The algorithm as its authors published it, pixel by pixel of a whole image."""
    od = -np.log((image.reshape(-1, 3).astype(float) + 1) / 240)
    kept = od[~np.any(od < 0.15, axis=1)]
    _, vectors = np.linalg.eigh(np.cov(kept.T))
    vectors = vectors[:, 1:3]
    vectors = vectors * np.where(vectors.sum(axis=0) < 0, -1, 1)
    projected = kept @ vectors
    phi = np.arctan2(projected[:, 1], projected[:, 0])
    first, second = (
        vectors @ np.array([np.cos(a), np.sin(a)]) for a in np.percentile(phi, [1, 99])
    )
    he = np.array([first, second] if first[0] > second[0] else [second, first]).T
    c = np.linalg.lstsq(he, od.T, rcond=None)[0]
    c *= (np.array([1.9705, 1.0308]) / np.percentile(c, 99, axis=1))[:, None]
    reference = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
    return np.clip(240 * np.exp(-reference @ c), 0, 255).T.reshape(image.shape)


@pytest.mark.parametrize("seed", range(3))
def test_macenko_is_the_published_algorithm(seed):
    """Where all is tissue; the published code is off by the one that it adds before a logarithm."""
    random = np.random.default_rng(seed)
    pixels = stain(unit(PURPLE), amounts_of(seed=seed) + 0.6)
    noisy = np.clip(pixels + random.normal(0, 4, pixels.shape), 0, 200).astype(np.uint8)

    found = fit_stains(noisy, "macenko")(noisy)

    assert np.abs(found - (published_macenko(noisy) - 1)).max() <= 1


def ruderman(pixels):
    """Values l, alpha, beta of Reinhard et al., term by term."""
    r, g, b = pixels.reshape(-1, 3).astype(float).T
    cones = (
        0.3811 * r + 0.5783 * g + 0.0402 * b,
        0.1967 * r + 0.7244 * g + 0.0782 * b,
        0.0241 * r + 0.1288 * g + 0.8444 * b,
    )
    long, middle, short = (np.log(cone) for cone in cones)
    l_axis = (long + middle + short) / np.sqrt(3)
    alpha = (long + middle - 2 * short) / np.sqrt(6)
    beta = (long - middle) / np.sqrt(2)
    return np.stack([l_axis, alpha, beta], axis=1)


@pytest.mark.parametrize("stains", [PURPLE, BLUE], ids=["purple", "blue"])
def test_reinhard_gives_mean_and_deviation_of_the_reference(stains):
    amounts = amounts_of() * 0.3 + 0.5
    pixels = stain(unit(stains), amounts)

    changed = fit_stains(pixels, "reinhard")(pixels)

    inside = ((changed > 0) & (changed < 255)).all(axis=1)
    assert inside.mean() > 0.75
    before, after = ruderman(pixels), ruderman(changed)
    expected = (before - before.mean(axis=0)) / before.std(axis=0)
    expected = expected * REFERENCE_DEVIATION + REFERENCE_MEAN
    assert np.abs(after - expected)[inside].max() < 0.1  # of rounding in dark pixels
    assert np.abs(after - expected)[inside].mean() < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_glass_has_no_part_in_the_fit(method):
    tissue = stain(unit(PURPLE), amounts_of() + 0.5)
    glass = np.full((50_000, 3), 243, np.uint8)

    alone = fit_stains(tissue, method)
    both = fit_stains(np.concatenate([glass, tissue]), method)

    assert np.array_equal(both(tissue), alone(tissue))


def test_macenko_leaves_glass_pale():
    found = fit_stains(stain(unit(PURPLE), amounts_of() + 0.5), "macenko")
    assert found(np.full((1, 3), 240, np.uint8)).min() >= 235


BAD = {
    "white": (np.full((4000, 3), 255, np.uint8), "only 0 of 4000 pixels are tissue"),
    "pale": (np.full((4000, 3), 230, np.uint8), "pixels are tissue, at least"),
    "one colour": (np.tile(np.uint8([150, 90, 160]), (4000, 1)), "single colour|hardly differ"),
    "black": (np.zeros((4000, 3), np.uint8), "dark, as in fluorescence"),
    "none": (np.empty((0, 3), np.uint8), "only 0 of 0"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BAD)
def test_what_has_no_stains_is_refused(name, method):
    pixels, message = BAD[name]
    with pytest.raises(StainError, match=message):
        fit_stains(pixels, method)


@pytest.mark.parametrize("method", METHODS)
def test_fluorescence_is_refused(method):
    """Bright nuclei of one channel on black."""
    pixels = np.random.default_rng(0).integers(0, 20, (4000, 3)).astype(np.uint8)
    pixels[:1500, 2] = np.random.default_rng(1).integers(60, 255, 1500)
    with pytest.raises(StainError, match="fluorescence"):
        fit_stains(pixels, method)


def test_a_single_stain_is_no_two():
    amounts = amounts_of() * [1, 0] + [0.5, 0]
    with pytest.raises(StainError, match="single"):
        fit_stains(stain(unit(PURPLE), amounts), "macenko")


@pytest.mark.parametrize("method", METHODS)
def test_any_pixels_give_bytes_or_a_reason(method):
    random = np.random.default_rng(0)
    for low, high in ((0, 256), (0, 120), (100, 256), (90, 110)):
        pixels = random.integers(low, high, (3000, 3)).astype(np.uint8)
        try:
            found = fit_stains(pixels, method)(pixels)
        except StainError:
            continue
        assert found.dtype == np.uint8
        assert found.shape == pixels.shape


def test_an_image_with_little_tissue_is_normalised_by_all_its_pixels(caplog):
    pixels = np.full((96, 144, 3), 245, np.uint8)
    pixels[:, :14] = stain(unit(PURPLE), amounts_of(96 * 14)).reshape(96, 14, 3)
    with caplog.at_level(logging.WARNING):
        mapped = normalise_image(pixels, "macenko", name="little")
    assert not caplog.records
    assert np.array_equal(mapped, fit_stains(pixels, "macenko")(pixels))
    assert not np.array_equal(mapped, pixels)


# ------------------------------------------------------------ patches of slides


def stained_store(fake_store, name, stains, *, seed=0, **options):
    """A store of tissue stained by a laboratory, the same tissue whatever the stains."""
    store = fake_store(name, [0, 1] * 10, **options)
    amounts = amounts_of(store.pixels[..., 0].size, seed) + 0.4
    np.random.default_rng(seed).shuffle(amounts)
    store.pixels = stain(unit(stains), amounts).reshape(store.pixels.shape)
    return store


def read_all(store):
    pixels = np.empty((len(store), *store.kind.shape), np.uint8)
    return pixels, store.read_into(np.arange(len(store)), pixels)


@pytest.mark.parametrize("method", METHODS)
def test_two_laboratories_look_alike_afterwards(fake_store, method):
    stores = [stained_store(fake_store, n, s) for n, s in (("a", PURPLE), ("b", BLUE))]
    before = np.abs(stores[0].pixels.astype(int) - stores[1].pixels).mean()
    pixels = [read_all(NormalisedPatches(store, method))[0].astype(int) for store in stores]
    assert np.abs(pixels[0] - pixels[1]).mean() < before * 0.6


@pytest.mark.parametrize("method", METHODS)
def test_a_patch_is_mapped_by_its_slide_in_any_order(fake_store, method):
    store = stained_store(fake_store, "a", PURPLE)
    whole, _ = read_all(NormalisedPatches(store, method))
    patches = NormalisedPatches(store, method)
    out = np.empty((2, *store.kind.shape), np.uint8)
    patches.read_into(np.array([7, 3]), list(out))
    assert np.array_equal(out, whole[[7, 3]])
    chosen = fit_slide_map(store, method)
    assert np.array_equal(chosen(store.pixels[3]), whole[3])


def test_what_cannot_be_read_stays_white_and_out_of_the_fit(fake_store):
    store = stained_store(fake_store, "a", PURPLE, unreadable=[1], broken=[2])
    store.pixels[1] = 0
    pixels, lost = read_all(NormalisedPatches(store, "macenko"))
    assert lost[2]
    assert (pixels[2] == 255).all()
    kept = np.delete(store.pixels, [1, 2], axis=0)
    assert np.array_equal(pixels[0], fit_stains(kept, "macenko")(store.pixels[0]))


def test_a_slide_without_stains_keeps_its_colours_with_one_warning(fake_store, caplog):
    store = fake_store("white", [0, 1] * 3)
    store.pixels[...] = 250
    patches = NormalisedPatches(store, "macenko")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (read_all(patches)[0] == 250).all()
    (record,) = caplog.records
    assert "white: stains are not normalised: only 0 of" in record.getMessage()


def test_no_method_is_the_store_itself_and_grey_is_refused(fake_store):
    store = fake_store("a", [0, 1])
    assert normalise_patches(store, None) is store
    image = store.pixels[0]
    assert normalise_image(image, None, name="a") is image
    store.kind = type(store.kind)((15, 15, 1), 0.5)
    with pytest.raises(ConfigError, match=r"a: preprocess\.stain=reinhard needs three channels"):
        normalise_patches(store, "reinhard")
