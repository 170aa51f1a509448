"""Noise, fibres, outlines and stains of drawn tissue. Pure functions of a generator.

Amounts of stain are optical densities per unit of a stain's colour vector, so that light is
absorbed as on glass: intensity = white * exp(-(amount of H * vector of H + amount of E * ...)).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]

MAX_REACH = 1.35  # how far an outline leaves its centre at most, share of its mean radius
AMOUNT_STEP = 1 / 80  # one step of a stain's 8-bit amount; 255 steps reach 3.2, black

# Optical densities (R, G, B) of the two stains, after the look of scanned lymph nodes.
HAEMATOXYLIN = (0.66, 0.74, 0.34)
EOSIN = (0.10, 0.86, 0.40)


@dataclass(frozen=True)
class Stain:
    """Stain of a laboratory's batch: colour and strength of each stain, colour of the glass."""

    haematoxylin: tuple[float, float, float]  # optical density of amount 1 (R, G, B)
    eosin: tuple[float, float, float]
    white: tuple[float, float, float]  # (R, G, B) in [0, 255] of empty glass


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw a batch's hue and strength; both vary so much that colour alone is not informative."""
    strength = rng.uniform((0.75, 0.65), (1.2, 1.5))
    hue = rng.uniform(-0.09, 0.09, (2, 3))
    h, e = (np.array((HAEMATOXYLIN, EOSIN)) + hue).clip(0.02) * strength[:, None]
    white = rng.uniform(240, 247) + rng.uniform(-2, 2, 3)
    return Stain(_triple(h), _triple(e), _triple(white))


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b


def stain_image(haematoxylin: Floats, eosin: Floats, stain: Stain) -> NDArray[np.uint8]:
    """Let light through stained tissue.

    Parameters
    ----------
    haematoxylin, eosin : (H, W)
        Amounts of stain, >= 0.

    Returns
    -------
    image : (H, W, 3) uint8
        RGB.
    """
    steps = np.arange(256)[:, None] * AMOUNT_STEP
    through_h = np.exp(-steps * np.array(stain.haematoxylin))  # (256, 3)
    through_e = np.exp(-steps * np.array(stain.eosin))
    table = through_h[:, None] * through_e[None] * np.array(stain.white)
    colours = np.zeros((256, 256, 4), np.uint8)  # four bytes: one look-up per pixel
    colours[..., :3] = np.rint(table)
    index = _to_steps(haematoxylin).astype(np.uint16) * np.uint16(256) + _to_steps(eosin)
    found = colours.view(np.uint32).reshape(-1)[index]
    return np.ascontiguousarray(found.view(np.uint8).reshape(*index.shape, 4)[..., :3])


def _to_steps(amount: Floats) -> NDArray[np.uint8]:
    steps = amount * np.float32(1 / AMOUNT_STEP) + np.float32(0.5)
    np.clip(steps, 0, 255, out=steps)
    return steps.astype(np.uint8)


def resize(field: Floats, size: tuple[int, int], *, smooth: bool = True) -> Floats:
    """Resample a field to (width, height), bicubic or bilinear."""
    kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(field).resize(size, kind), np.float32)


def smooth_noise(
    rng: np.random.Generator, size: tuple[int, int], *, cell_px: float, octaves: int = 1
) -> Floats:
    """Draw noise without features finer than a length.

    Parameters
    ----------
    size : (width, height), px
    cell_px : px
        Distance between the random values that are interpolated; halved with each octave.
    octaves : int
        Each adds finer detail at half the strength.

    Returns
    -------
    noise : (height, width) float32
        Mean about 0, standard deviation about 0.6 to 0.7.
    """
    total = np.zeros((size[1], size[0]), np.float32)
    for octave in range(octaves):
        cell = cell_px / 2**octave
        width, height = (int(length / cell) + 2 for length in size)
        coarse = rng.standard_normal((height, width), np.float32)
        total += resize(coarse, size) * np.float32(0.5**octave)
    return total


def draw_fibres(
    rng: np.random.Generator, size: tuple[int, int], *, px_um: float
) -> tuple[Floats, Floats]:
    """Draw wavy bundles of collagen.

    The contours of a smooth field are parallel, like fibres: a fine noise is indexed by the field's
    value across the fibres, and by another slow field along them.

    Parameters
    ----------
    size : (width, height), px
    px_um : µm per px

    Returns
    -------
    fibres : (height, width) float32
        Mean about 0, standard deviation about 0.6.
    direction : (height, width) float32, radians
        Along the fibres, from x towards y.
    """
    width, height = size
    angle = rng.uniform(0, np.pi)
    y, x = np.ogrid[0:height, 0:width]
    across = (x * np.cos(angle) + y * np.sin(angle)).astype(np.float32) * np.float32(px_um)
    along = (y * np.cos(angle) - x * np.sin(angle)).astype(np.float32) * np.float32(px_um)
    across += smooth_noise(rng, size, cell_px=170 / px_um, octaves=3) * np.float32(55)
    along += smooth_noise(rng, size, cell_px=60 / px_um) * np.float32(40)
    table = smooth_noise(rng, (1024, 1024), cell_px=4.0, octaves=3)
    u = (across * np.float32(1.1)).astype(np.int32) & 1023
    v = (along * np.float32(0.2)).astype(np.int32) & 1023
    fibres: Floats = table.reshape(-1)[v * 1024 + u]
    down, right = np.gradient(across)
    direction: Floats = np.arctan2(right, -down)  # a quarter turn from the steepest rise
    return fibres, direction


def blob_outline(
    rng: np.random.Generator,
    centre: tuple[float, float],
    diameter: float,
    *,
    irregularity: float = 0.16,
    n_vertices: int = 120,
) -> NDArray[np.float64]:
    """Draw a closed, smooth, irregular, star-shaped outline.

    Parameters
    ----------
    centre : (x, y)
    diameter : same unit as `centre`
        Of the disc with nearly the same area.
    irregularity : in [0, 0.3]
        How far the outline leaves the circle, as a share of the radius.

    Returns
    -------
    vertices : (n_vertices, 2)
        (x, y); never crossing itself.
    """
    theta = np.linspace(0, 2 * np.pi, n_vertices, endpoint=False)
    radius = np.ones(n_vertices)
    for k in range(1, 8):  # slow waves are strong, quick ones weak
        amplitude = irregularity * rng.normal() / k**0.8
        radius += amplitude * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    radius = radius.clip(0.45, MAX_REACH) * diameter / 2
    points = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=-1)
    points += np.array(centre)
    return points


def fill_polygon(
    size: tuple[int, int], vertices: Sequence[Sequence[float]] | NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Rasterise one polygon, given in pixels of the mask; (height, width) bool."""
    canvas = Image.new("L", size)
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in vertices], fill=1)
    return np.asarray(canvas, np.uint8).astype(bool)
