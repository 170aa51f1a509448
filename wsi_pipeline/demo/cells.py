"""Nuclei: their kinds, drawing one, and placing thousands in a slide."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.demo.textures import Floats

N_ANGLES = 12  # directions in which oriented nuclei are drawn, over half a turn


@dataclass(frozen=True)
class CellKind:
    """Appearance of the nuclei of one kind of cell."""

    diameter_um: tuple[float, float]  # range of the disc with the same area
    elongation: tuple[float, float]  # range of long over short axis
    irregularity: float  # how far the outline leaves the ellipse, share of the radius
    haematoxylin: tuple[float, float]  # range of the mean amount of stain
    clumps: float  # strength of the chromatin's texture, share of the amount
    rim: float  # extra stain along the membrane, share of the amount
    nucleoli: int  # at most so many dark dots
    n_stamps: int = 48  # different nuclei drawn


# Sizes after histology's rules of thumb: a small lymphocyte's nucleus is about as wide as a red
# blood cell (7 µm unfixed, 5 to 6 in sections), a carcinoma's two to three times that.
FIBROBLAST = CellKind((4.6, 6.0), (2.6, 4.2), 0.05, (0.9, 1.5), 0.15, 0.0, 0, 8)
STROMAL = CellKind((5.8, 7.0), (1.1, 1.6), 0.05, (0.8, 1.3), 0.2, 0.15, 1)
LYMPHOCYTE = CellKind((4.9, 6.0), (1.0, 1.25), 0.04, (1.5, 2.2), 0.22, 0.12, 0)
EPITHELIAL = CellKind((6.0, 7.2), (1.3, 1.7), 0.03, (1.0, 1.5), 0.18, 0.2, 1, 5)
CENTROBLAST = CellKind((7.9, 11.3), (1.0, 1.4), 0.05, (0.7, 1.3), 0.24, 0.3, 2)
TUMOUR = CellKind((10.5, 15.5), (1.0, 1.6), 0.08, (0.8, 1.65), 0.26, 0.35, 3, 96)


@dataclass(frozen=True)
class Stamp:
    """One drawn nucleus, to be placed in a slide."""

    cover: Floats  # (k, k) in [0, 1], how far the nucleus hides what is under it
    haematoxylin: Floats  # (k, k) amount of stain


def draw_nucleus(rng: np.random.Generator, kind: CellKind, *, angle: float, mpp: float) -> Stamp:
    """Draw one nucleus.

    Parameters
    ----------
    angle : radians
        Direction of the long axis, from x towards y.
    mpp : µm per px of the slide

    Returns
    -------
    stamp : Stamp
        Square, odd-sided, centred on the nucleus.
    """
    radius = rng.uniform(*kind.diameter_um) / 2 / mpp
    stretch = np.sqrt(rng.uniform(*kind.elongation))
    half = int(np.ceil(radius * stretch * (1 + 3 * kind.irregularity))) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along = (x * np.cos(angle) + y * np.sin(angle)) / stretch
    across = (y * np.cos(angle) - x * np.sin(angle)) * stretch
    theta = np.arctan2(across, along)
    outline = np.ones_like(x)
    for k in (2, 3, 4, 5):
        outline += kind.irregularity * rng.normal() * np.cos(k * theta + rng.uniform(0, 7)) / k**0.5
    depth = np.hypot(along, across) / (radius * outline.clip(0.6, 1.4))  # 0 centre, 1 membrane
    cover = ((1 - depth) * radius / 1.2 + 0.5).clip(0, 1)  # an edge of about a pixel
    clumps = ndimage.gaussian_filter(rng.standard_normal(x.shape), 0.55 / mpp)
    amount = 1 + kind.clumps * clumps / max(float(clumps.std()), 1e-6)
    amount += kind.rim * np.exp(-(((depth - 0.9) / 0.15) ** 2))
    for _ in range(int(rng.integers(0, kind.nucleoli + 1))):
        cx, cy = rng.uniform(-0.5, 0.5, 2) * radius
        size = rng.uniform(0.9, 1.5) / mpp
        amount += 0.7 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (size * size))
    amount *= rng.uniform(*kind.haematoxylin)
    return Stamp(cover.astype(np.float32), amount.clip(0).astype(np.float32))


def draw_stamps(
    rng: np.random.Generator, kind: CellKind, *, mpp: float, oriented: bool = False
) -> list[Stamp]:
    """Draw a stock of nuclei; oriented ones by direction, `kind.n_stamps` for each of N_ANGLES."""
    if oriented:
        angles = np.repeat(np.arange(N_ANGLES) * np.pi / N_ANGLES, kind.n_stamps)
    else:
        angles = rng.uniform(0, np.pi, kind.n_stamps)
    return [draw_nucleus(rng, kind, angle=float(angle), mpp=mpp) for angle in angles]


def oriented_choice(
    rng: np.random.Generator, kind: CellKind, angles: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Choose from an oriented stock the stamps that lie along the angles (radians)."""
    direction = np.rint(angles / np.pi * N_ANGLES).astype(np.int64) % N_ANGLES
    return direction * kind.n_stamps + rng.integers(0, kind.n_stamps, len(angles))


def scatter_points(
    rng: np.random.Generator, size: tuple[float, float], *, spacing: float, jitter: float = 0.3
) -> NDArray[np.float64]:
    """Scatter points like cells: at random, without overlap.

    Parameters
    ----------
    size : (width, height)
    spacing : same unit
        Of the hexagonal lattice that is shaken.
    jitter : share of `spacing`
        Largest shift of a point along each axis.

    Returns
    -------
    points : (n, 2)
        (x, y), some a little outside; in random order.
    """
    x, y = np.meshgrid(
        np.arange(0.0, size[0], spacing), np.arange(0.0, size[1], spacing * np.sqrt(0.75))
    )
    x[1::2] += spacing / 2
    points = np.stack([x, y], axis=-1).reshape(-1, 2)
    points += rng.uniform(-jitter, jitter, points.shape) * spacing
    return rng.permutation(points)


def place_stamps(
    canvas: Floats, points: NDArray[np.float64], stamps: Sequence[Stamp], choice: NDArray[np.int64]
) -> None:
    """Place nuclei over the canvas, one after the other, in place.

    Parameters
    ----------
    canvas : (H, W)
        Amount of haematoxylin.
    points : (n, 2), px
        (x, y) of the centres; what reaches over the edge is cut off.
    choice : (n,)
        Which stamp for each point.
    """
    height, width = canvas.shape
    centres = np.rint(points).astype(int).tolist()
    for (x, y), number in zip(centres, choice.tolist(), strict=True):
        stamp = stamps[number]
        side, half = len(stamp.cover), len(stamp.cover) // 2
        left, top = x - half, y - half
        rows = slice(max(0, -top), max(0, min(side, height - top)))
        columns = slice(max(0, -left), max(0, min(side, width - left)))
        window = canvas[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
        window += (stamp.haematoxylin[rows, columns] - window) * stamp.cover[rows, columns]
