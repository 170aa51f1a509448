"""Colours of the tissue of slides: whether a slide is far from those that a model was trained on.

Of some patches of a slide, the pixels that absorb light (optical density at least 0.15 in a
channel, the limit of [1]_) are converted to CIELAB. The colour of a patch is their mean, that of
the slide the median over its patches; its deviation is the median of the standard deviations within
patches. The colours of a training are the range of those of its slides, and the median of their
deviations.

A slide is far if its colour lies outside that range by more than `FAR` of these deviations, in L*,
a* or b*. The measure needs no second training slide, and has the units of the tissue itself:
lightness varies most within a slide (with the density of nuclei) and is judged most generously,
hue and chroma, which stain and scanner change, more strictly.

References
----------
.. [1] M. Macenko et al., "A method for normalizing histology slides for quantitative analysis",
   ISBI 2009, pages 1107-1110.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wsi_pipeline.cohort.data import Patches

FAR = 2.0  # standard deviations within training slides
N_PATCHES = 32  # of a slide, evenly spaced
N_SLIDES = 64  # of a training, evenly spaced
MIN_DENSITY = 0.15  # optical density, base 10
MIN_TISSUE = 0.02  # share of a patch's pixels that absorb light; patches with less have no colour
DARK = 20.0  # L*: stained tissue in transmitted light is lighter
_LONGEST_PX = 32  # of the grid of pixels taken of a patch, in each direction
_CHANNELS = ("L*", "a*", "b*")

# sRGB (IEC 61966-2-1): the light of each value, and the tristimulus values of red, green and blue.
_VALUES = np.arange(256) / 255
_LINEAR = np.where(_VALUES <= 0.04045, _VALUES / 12.92, ((_VALUES + 0.055) / 1.055) ** 2.4)
_XYZ_OF_RGB = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


@dataclass(frozen=True)
class TissueColour:
    """The colour of a slide's tissue."""

    mean: NDArray[np.float64]  # (3,) CIELAB
    deviation: NDArray[np.float64]  # (3,) within patches


def measure_tissue(store: "Patches", among: NDArray[np.bool_] | None = None) -> TissueColour | None:
    """Measure the colour of the tissue on some patches of a slide.

    Parameters
    ----------
    store : patch store
    among : (N,), optional
        Patches to choose from; None: all that are readable.

    Returns
    -------
    colour : TissueColour or None
        None if no patch can be read, or none has tissue.
    """
    usable = ~store.unreadable if among is None else among & ~store.unreadable
    readable = np.flatnonzero(usable)
    rows = readable[_spread(len(readable), N_PATCHES)]
    if not len(rows):
        return None
    pixels = np.empty((len(rows), *store.kind.shape), np.uint8)
    lost = store.read_into(rows, pixels)
    colours = [found for patch in pixels[~lost] if (found := _measure_patch(patch)) is not None]
    if not colours:
        return None
    mean, deviation = np.median(colours, axis=0)
    return TissueColour(mean, deviation)


def _measure_patch(patch: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Return mean and deviation of a patch's tissue: (2, 3) CIELAB."""
    step_y, step_x = (max(1, -(-side // _LONGEST_PX)) for side in patch.shape[:2])
    pixels = patch[::step_y, ::step_x].reshape(-1, 3)
    # Optical density -log10((v + 1) / 256) >= MIN_DENSITY in some channel.
    tissue = pixels[pixels.min(axis=1) <= 256 * 10**-MIN_DENSITY - 1]
    if len(tissue) < max(2, MIN_TISSUE * len(pixels)):
        return None
    lab = _to_lab(tissue)
    return np.stack([lab.mean(axis=0), lab.std(axis=0)])


def _to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert sRGB to CIELAB under D65: (n, 3). Importing scikit-image's takes half a second."""
    xyz = _LINEAR[pixels] @ _XYZ_OF_RGB.T / _XYZ_OF_RGB.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """Choose places of n, evenly spaced, at most so many."""
    if n <= most:
        return np.arange(n)
    return np.linspace(0, n - 1, most).round().astype(np.int64)


def describe_training_colours(stores: Sequence["Patches"]) -> dict[str, Any] | None:
    """Describe the colours of the labelled patches of the training slides, for the checkpoint.

    Returns
    -------
    colours : dict or None
        ``low``, ``high`` and ``deviation`` (CIELAB, rounded), and ``slides`` measured; None if no
        tissue was found.
    """
    chosen = [stores[i] for i in _spread(len(stores), N_SLIDES)]
    measured = (measure_tissue(store, store.label >= 0) for store in chosen)
    found = [colour for colour in measured if colour is not None]
    if not found:
        return None
    means = np.array([colour.mean for colour in found])
    return {
        "low": _round(means.min(axis=0)),
        "high": _round(means.max(axis=0)),
        "deviation": _round(np.median([colour.deviation for colour in found], axis=0)),
        "slides": len(found),
    }


def _round(values: NDArray[np.float64]) -> list[float]:
    return [round(value, 2) for value in values.tolist()]


def compare_colours(colour: TissueColour, training: Mapping[str, Any]) -> str:
    """Report in words how far a slide's colour is from those of a training.

    Parameters
    ----------
    training : mapping
        As `describe_training_colours` returns it.

    Returns
    -------
    warning : str
        Empty if the slide is not far.
    """
    low, high, deviation = (np.array(training[k], float) for k in ("low", "high", "deviation"))
    outside = np.maximum(np.maximum(low - colour.mean, colour.mean - high), 0)
    distance = outside / np.maximum(deviation, 1)  # one unit is about the smallest visible step
    if distance.max() <= FAR:
        return ""
    parts = [
        f"{name} {value:.0f} (training {_range(a, b)})"
        for name, value, a, b, d in zip(_CHANNELS, colour.mean, low, high, distance, strict=True)
        if d > FAR
    ]
    dark = colour.mean[0] < DARK < low[0]
    kind = "the slide is dark, as in fluorescence" if dark else "its tissue has other colours"
    return (
        f"far from the slides that the model was trained on, {kind}: {', '.join(parts)}; its "
        "scores may be wrong, check its stain and scanner"
    )


def _range(low: float, high: float) -> str:
    return f"{low:.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f}"


def find_far(store: "Patches", card: Mapping[str, Any]) -> str:
    """Compare a slide with what a checkpoint's card records of the training slides.

    Both are the colours that the model sees: with normalised stains, the normalised ones.

    Returns
    -------
    warning : str
        Empty if the slide is not far, has no tissue, or nothing is recorded.
    """
    training = card.get("colours")
    if not training:
        return ""
    colour = measure_tissue(store)
    return compare_colours(colour, training) if colour is not None else ""
