"""Drawn thumbnails of stained tissue, with pen, edges and bubbles, and where the tissue is."""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SIDE_UM = 8000.0
GLASS = (243, 241, 244)
# Optical densities of red, green and blue: Ruifrok and Johnston 2001.
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
STAINS = {  # (densities, how much of it)
    "H&E": ((HAEMATOXYLIN, 0.45), (EOSIN, 0.35)),
    "faint H&E": ((HAEMATOXYLIN, 0.06), (EOSIN, 0.05)),
    "DAB": ((HAEMATOXYLIN, 0.25), (DAB, 0.5)),
    "haematoxylin": ((HAEMATOXYLIN, 0.35),),
    "eosin": ((EOSIN, 0.4),),
}
INKS = {
    "blue": (40, 70, 180),
    "light blue": (60, 120, 200),
    "green": (20, 120, 60),
    "black": (25, 25, 32),
    "red": (205, 35, 45),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """A thumbnail and its truth."""

    rgb: NDArray[np.uint8]
    tissue: NDArray[np.bool_]  # a large piece and a fragment of 240 µm
    artefact: NDArray[np.bool_]  # strokes, bars, rims: no tissue


def draw_scene(
    stain: str,
    *,
    mpp: float = 8.0,
    ink: str | None = None,
    edges: bool = False,
    bubble: bool = False,
    glass: tuple[int, int, int] = GLASS,
) -> Scene:
    """Draw 8 x 8 mm: the same at any resolution, but for the texture of the tissue."""
    n_px = round(SIDE_UM / mpp)
    y, x = (np.mgrid[:n_px, :n_px] + 0.5) * mpp
    angle = np.arctan2(y - 4000, x - 3500)
    wobble = 0.08 * np.sin(7 * angle) + 0.05 * np.sin(17 * angle)
    tissue = np.hypot((y - 4000) / 2600, (x - 3500) / 1700) < 1 + wobble
    tissue |= np.hypot(y - 1200, x - 6300) < 120
    picture = np.array(glass, float) * 10 ** -_density(stain, tissue, mpp)
    artefact = np.zeros_like(tissue)
    if ink is not None:
        artefact |= _stroke(picture, x, y, ink, mpp)
    if edges:
        artefact |= _edges(picture, x, y)
    if bubble:
        artefact |= _bubble(picture, x, y)
    picture = ndimage.gaussian_filter(picture, (6 / mpp, 6 / mpp, 0))
    picture += np.random.default_rng(5).normal(0, 2.5, picture.shape)
    return Scene(picture.clip(0, 255).astype(np.uint8), tissue, artefact)


def _texture(
    shape: tuple[int, int], length_um: float, mpp: float, seed: int
) -> NDArray[np.float64]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), length_um / mpp)
    return noise / noise.std()


def _density(stain: str, tissue: NDArray[np.bool_], mpp: float) -> NDArray[np.float64]:
    density = np.zeros((*tissue.shape, 3))
    for seed, (colour, amount) in enumerate(STAINS[stain]):
        some = np.clip(1 + 0.35 * _texture(tissue.shape, 60, mpp, seed), 0.35, 2)
        density += (tissue * some * amount)[..., None] * np.array(colour) / np.linalg.norm(colour)
    return density


def _stroke(picture, x, y, ink, mpp):
    """A line across the tissue and a ring next to it, denser here and paler there."""
    line = (np.abs(y - (0.45 * x + 500)) < 180) & (x > 400) & (x < 7600)
    stroke = line | (np.abs(np.hypot(y - 5000, x - 6600) - 900) < 110)
    uneven = np.clip(1 - 0.15 * _texture(stroke.shape, 100, mpp, 9), 0.6, 1)
    opacity = (ndimage.gaussian_filter(stroke.astype(float), 15 / mpp) * uneven)[..., None]
    picture[:] = picture * (1 - opacity) + opacity * picture * np.array(INKS[ink]) / 245
    return stroke


def _edges(picture, x, y):
    """A black bar, a grey bar and the thin grey line of a coverslip."""
    black, grey = x < 160, y > 7850
    picture[black], picture[grey] = 30, (70, 68, 66)
    line = np.abs(y - 250 - 0.01 * x) < 14
    picture[line] *= 0.55
    return black | grey | line


def _bubble(picture, x, y):
    """A ring: dark within, a faint warm fringe without."""
    from_centre = np.hypot(y - 6500, x - 1500)
    rim, fringe = np.abs(from_centre - 700) < 40, np.abs(from_centre - 750) < 12
    picture[rim] *= 0.35
    picture[fringe] *= (0.9, 0.85, 0.8)
    return rim | fringe
