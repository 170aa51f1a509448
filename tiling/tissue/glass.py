"""The colour of bare glass on a bright-field slide, and how much it flickers.

A lamp, a mounting medium, age or a scanner tints glass. Saturation is measured against that tint,
so that tinted glass is not tissue and pale tissue is not lost in it. docs/tissue.md gives the
reasons.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]  # R, G, B, 0 to 1

WHITE: Colour = (1.0, 1.0, 1.0)
SAMPLE_PX = 2**16  # of the picture, about
WINDOW_PX = 3  # side of the squares that a sample is the mean of
MIN_VALUE = 0.72  # of glass, 0 to 1
MAX_PLAIN = 0.12  # HSV saturation of glass that is hardly tinted
MAX_PLAIN_PINK = 0.045  # a stronger pink may be pale eosin
MAX_TINT, MAX_PINK_TINT = 0.35, 0.13  # of tinted glass
UNSEEN = 253  # 8-bit; above it, white was filled in and not recorded by a camera
MIN_SHARE = 0.01  # of the sample; fewer pixels are no evidence of glass
NEAR = 0.04  # of the commonest colour; glass is even
BINS = 64  # of brightness
# Of the 8-bit values in a window: glass has 0.3 to 2 on real slides, the noise of a poor camera 5,
# pale eosin 7 and more at 8 µm per pixel.
MAX_EVEN_DEVIATION = 6.0
MIN_EVEN = 0.75  # of what has the colour of glass; of pale eosin it is less than 0.6
MODES = 4  # tinted colours that are compared
MIN_SHARE_OF_MODES = 0.05  # of the commonest tinted colour
DOMINANT = 5.0  # so many times as common: the plain colour is a highlight or filler, not the glass
MIN_DARKER = 0.02  # of the sample: without anything darker, an even pink may be pale eosin
MIN_GREY_BESIDE_WHITE = 0.85  # of grey glass where there is white, 0 to 1
GREY_SHARE = 0.999  # of the pixels of a grey picture have three equal channels


@dataclass(frozen=True)
class _Sample:
    """Means of small squares of a picture."""

    colour: NDArray[np.float32]  # (n, 3), 0 to 255
    deviation: NDArray[np.float32]  # (n,) standard deviation within a square, 8-bit values
    value: NDArray[np.float32]  # (n,) brightest channel, 0 to 255
    tint: NDArray[np.float32]  # (n,) HSV saturation
    pink: NDArray[np.bool_]  # (n,) green is the least: pink, purple, lilac

    def __len__(self) -> int:
        return len(self.value)


def find_glass(rgb: NDArray[np.uint8]) -> Colour:
    """Estimate the colour of the glass: the commonest bright and nearly colourless one.

    Where hardly anything is colourless, or a tinted colour is far commoner, the glass is the
    brightest of the common even tints. A pink that could be pale eosin is glass only if
    something is darker. In a grey picture glass is the brightest of the common greys.

    Parameters
    ----------
    rgb : (H, W, 3) uint8

    Returns
    -------
    colour : R, G, B, 0 to 1
        White if nothing looks like glass.
    """
    sample = _take_sample(rgb)
    if not len(sample):
        return WHITE
    if is_grey(rgb):
        return _as_colour(_brightest_grey(sample))
    bright = (sample.value >= MIN_VALUE * 255) & (sample.value * (1 - sample.tint) < UNSEEN)
    is_plain = bright & (sample.tint <= np.where(sample.pink, MAX_PLAIN_PINK, MAX_PLAIN))
    tinted = _brightest_tinted(sample, bright & ~is_plain)
    plain = _find_plain(sample, bright, is_plain, tinted)
    least = max(1.0, MIN_SHARE * len(sample))
    is_dominant = not tinted.is_pink and tinted.n_px > DOMINANT * plain.n_px
    if tinted.n_px >= least and (plain.n_px < least or is_dominant):
        return _as_colour(tinted.colour)
    return _as_colour(plain.colour) if plain.n_px >= least else WHITE


def glass_flicker(rgb: NDArray[np.uint8], saturation: NDArray[np.float32], glass: Colour) -> float:
    """Measure the median saturation of glass against its own colour.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    saturation : (h, w) float32
        Against `glass`, of the smoothed picture: every `sample_step`-th row and column.
    glass : R, G, B, 0 to 1

    Returns
    -------
    flicker : 0 to 1; 0 where there is no glass
    """
    off = np.abs(every_nth(rgb) / 255.0 - np.array(glass)).max(axis=2)
    found = saturation[off <= NEAR]
    return float(np.median(found)) if len(found) >= max(1, MIN_SHARE * off.size) else 0.0


def is_grey(rgb: NDArray[np.uint8]) -> bool:
    """Decide whether a picture has one channel, or three that are the same.

    They must be exactly the same: bare glass is nearly grey, and dirt on it is not tissue.
    """
    sample = every_nth(rgb)
    equal = (sample == sample[..., :1]).all(axis=2)
    return bool(equal.size) and float(np.mean(equal)) >= GREY_SHARE


def find_filler(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the exact greys that are the same as all their neighbours: no camera saw them.

    Parameters
    ----------
    rgb : (H, W, 3) uint8

    Returns
    -------
    filler : (H, W) bool
    """
    value = rgb[..., 0]
    same: NDArray[np.bool_] = (value == rgb[..., 1]) & (value == rgb[..., 2])
    same[1:] &= value[1:] == value[:-1]
    same[:-1] &= value[:-1] == value[1:]
    same[:, 1:] &= value[:, 1:] == value[:, :-1]
    same[:, :-1] &= value[:, :-1] == value[:, 1:]
    return same


def _take_sample(rgb: NDArray[np.uint8]) -> _Sample:
    height, width = rgb.shape[:2]
    step = sample_step(rgb.shape)
    rows, columns = (max(1, side - WINDOW_PX + 1) for side in (height, width))
    offsets = [
        (down, right)
        for down in range(min(WINDOW_PX, height))
        for right in range(min(WINDOW_PX, width))
    ]
    total = total_of_squares = np.zeros((1, 1, 1), np.float32)
    for down, right in offsets:
        part = rgb[down : down + rows : step, right : right + columns : step].astype(np.float32)
        total = total + part
        total_of_squares = total_of_squares + part * part
    if not offsets:
        return _describe(np.empty((0, 3), np.float32), np.empty(0, np.float32))
    colour: NDArray[np.float32] = total / np.float32(len(offsets))
    mean_of_squares = total_of_squares / np.float32(len(offsets))
    deviation = np.sqrt(np.maximum(mean_of_squares - colour * colour, 0).mean(axis=2))
    return _describe(colour.reshape(-1, 3), deviation.ravel())


def _describe(colour: NDArray[np.float32], deviation: NDArray[np.float32]) -> _Sample:
    value, least = colour.max(axis=1, initial=0), colour.min(axis=1, initial=255)
    tint = (value - least) / np.maximum(value, 1)
    red, green, blue = colour.T
    return _Sample(colour, deviation, value, tint, (green < red) & (green < blue))


@dataclass(frozen=True)
class _Candidate:
    """A colour that may be that of the glass."""

    colour: NDArray[np.float32]  # (3,), 0 to 255
    n_px: int  # of the sample
    is_pink: bool = False
    is_noisy: bool = False  # as a camera's picture is


NO_CANDIDATE = _Candidate(np.zeros(3, np.float32), 0)


def _find_plain(
    sample: _Sample,
    is_bright: NDArray[np.bool_],
    is_plain: NDArray[np.bool_],
    tinted: _Candidate,
) -> _Candidate:
    """Find the commonest even and nearly colourless colour."""
    if not is_plain.any():
        return NO_CANDIDATE
    # The noise of this picture; where tissue meets filled-in white, colours are uneven.
    floor = 2 * float(np.quantile(sample.deviation[is_bright], 0.1))
    chosen = is_plain & (sample.deviation <= max(MAX_EVEN_DEVIATION, floor))
    if tinted.is_noisy and not tinted.is_pink:  # next to noise, grey without any is filled in
        chosen &= (sample.deviation > 0) | (sample.tint > 0)
    if not chosen.any():
        return NO_CANDIDATE
    return _Candidate(_commonest_plain(sample, chosen)[0], int(chosen.sum()))


def _commonest_plain(
    sample: _Sample, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Find the median colour around the commonest brightness, and which pixels are near it."""
    value = sample.value / 255
    counts, edges = np.histogram(value[chosen], BINS, (0, 1))
    near = chosen & (np.abs(value - (edges[int(np.argmax(counts))] + 0.5 / BINS)) <= NEAR)
    return np.median(sample.colour[near], axis=0), near


def _brightest_grey(sample: _Sample) -> NDArray[np.float32]:
    """Find the brightest of the common greys; white if none is bright."""
    least = max(1.0, MIN_SHARE * len(sample))
    white = np.full(3, 255, np.float32)
    has_white = float(np.mean(sample.value >= UNSEEN)) >= MIN_SHARE
    left = (sample.value >= MIN_VALUE * 255) & (sample.value < UNSEEN)
    best, n_most = NO_CANDIDATE, 0
    for _ in range(MODES):
        if left.sum() < least:
            break
        colour, members = _commonest_plain(sample, left)
        n_most = max(n_most, int(members.sum()))
        if members.sum() >= MIN_SHARE_OF_MODES * n_most and colour.sum() > best.colour.sum():
            best = _Candidate(colour, int(members.sum()))
        left = left & ~members
    # Below white, which may be filled in or the glass itself, only what is nearly as bright.
    is_tissue = has_white and (
        best.colour[0] < MIN_GREY_BESIDE_WHITE * 255 or not _has_darker(sample, best.colour)
    )
    return white if best.n_px < least or is_tissue else best.colour


def _brightest_tinted(sample: _Sample, chosen: NDArray[np.bool_]) -> _Candidate:
    """Find the brightest of the common even tints."""
    even = sample.deviation <= MAX_EVEN_DEVIATION
    chosen = chosen & even & (sample.tint <= np.where(sample.pink, MAX_PINK_TINT, MAX_TINT))
    best, n_most = NO_CANDIDATE, 0
    for _ in range(MODES):
        if not chosen.any():
            break
        colour, members = _commonest_tint(sample, chosen)
        n_members = int(members.sum())
        n_most = max(n_most, n_members)
        is_pink = float(sample.pink[members].mean()) > 0.5
        is_common = n_members >= MIN_SHARE_OF_MODES * n_most
        # A pale pink without anything darker may be eosin.
        is_glass = _is_even(sample, colour) and (not is_pink or _has_darker(sample, colour))
        if is_common and is_glass and colour.sum() > best.colour.sum():
            is_noisy = float(np.median(sample.deviation[members])) > 0
            best = _Candidate(colour, n_members, is_pink, is_noisy)
        chosen = chosen & ~members
    return best


def _commonest_tint(
    sample: _Sample, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Find the commonest tint whatever its brightness, which vignetting changes, and who has it."""
    tints = sample.colour / np.maximum(sample.value, 1)[:, None]
    bins = np.minimum((tints[chosen] * BINS).astype(np.int64), BINS - 1)
    keys = (bins[:, 0] * BINS + bins[:, 1]) * BINS + bins[:, 2]
    values, counts = np.unique(keys, return_counts=True)
    commonest = np.median(tints[chosen][keys == values[np.argmax(counts)]], axis=0)
    members = chosen & (np.abs(tints - commonest).max(axis=1) <= NEAR)
    return np.median(sample.colour[members], axis=0), members


def _is_even(sample: _Sample, colour: NDArray[np.float32]) -> bool:
    """Whether most of what has a colour is even: pale tissue is so here and there only."""
    near = np.abs(sample.colour - colour).max(axis=1) <= NEAR * 255
    return float(np.mean(sample.deviation[near] <= MAX_EVEN_DEVIATION)) >= MIN_EVEN


def _has_darker(sample: _Sample, colour: NDArray[np.float32]) -> bool:
    """Whether enough of the picture is clearly darker than a colour, in any channel."""
    darker = (sample.colour < colour - 2 * NEAR * 255).any(axis=1)
    return float(darker.mean()) >= MIN_DARKER


def every_nth(picture: NDArray[Any]) -> NDArray[Any]:
    """Take about `SAMPLE_PX` pixels of a picture, evenly spaced."""
    step = sample_step(picture.shape)
    return picture[::step, ::step]


def sample_step(shape: tuple[int, ...]) -> int:
    """Distance between the pixels that `every_nth` takes of a picture (H, W)."""
    return max(1, math.isqrt(shape[0] * shape[1] // SAMPLE_PX))


def _as_colour(colour: NDArray[np.float32]) -> Colour:
    red, green, blue = (colour / 255).tolist()
    return red, green, blue
