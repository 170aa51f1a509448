"""Layout of a drawn slide: a map of grounds, 1 µm per pixel.

Filled in order, later things over earlier ones: tissue on glass, lymphoid cords, follicles, fat,
vessels and glands, tumours last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.demo.cells import scatter_points
from wsi_pipeline.demo.specs import CUT_GROUPS, MPP, SlideSpec
from wsi_pipeline.demo.textures import blob_outline, fill_polygon, resize, smooth_noise

Polygon = tuple[str, str, NDArray[np.float64]]  # (name, annotation group, vertices in level-0 px)


class Ground(IntEnum):
    """Ground at a position of the plan."""

    GLASS = 0
    STROMA = 1
    LYMPHOID = 2
    TUMOUR = 3
    EPITHELIUM = 4
    LUMEN = 5
    WALL = 6
    BLOOD = 7
    GERMINAL = 8


@dataclass
class Plan:
    """Layout of a slide; filled in order, later things over earlier ones."""

    ground: NDArray[np.uint8]  # (H, W) of `Ground`, 1 µm per px
    ring_points: list[NDArray[np.float64]] = field(default_factory=list)  # gland nuclei, µm
    ring_angles: list[NDArray[np.float64]] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), µm."""
        height, width = self.ground.shape
        return width, height

    def fill(self, vertices: NDArray[np.float64], ground: Ground, *, only: Ground | None) -> None:
        """Fill a polygon (µm), everywhere or on one ground only."""
        left, top = (int(v) for v in np.floor(vertices.min(axis=0)).clip(0))
        right, bottom = (int(v) for v in (np.ceil(vertices.max(axis=0)) + 1).clip(0))
        window = self.ground[top:bottom, left:right]
        if window.size == 0:
            return
        height, width = window.shape
        inside = fill_polygon((width, height), vertices - (left, top))
        if only is not None:
            inside &= window == only
        window[inside] = ground

    def at(self, points: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Ground under points (µm); glass outside."""
        width, height = self.size
        x, y = np.floor(points).astype(np.int64).T
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        found = np.zeros(len(points), np.uint8)
        found[inside] = self.ground[y[inside], x[inside]]
        return found


def make_plan(
    rng: np.random.Generator,
    spec: SlideSpec,
    polygons: Sequence[Polygon],
) -> Plan:
    """Plan a slide.

    Parameters
    ----------
    spec : SlideSpec
    polygons : sequence of (name, group, vertices)
        Tumours and their holes, level-0 px; what is drawn as tumour is exactly their union with
        the holes cut out, but for the septa of stroma within.

    Returns
    -------
    plan : Plan
    """
    width, height = (int(np.ceil(length * MPP)) for length in spec.size)
    outlines = [points * MPP for _, _, points in polygons]
    tissue = _draw_tissue(rng, (width, height), outlines)
    plan = Plan(tissue.astype(np.uint8) * np.uint8(Ground.STROMA))
    _add_lymphoid(rng, plan, spec.lymphoid)
    for _ in range(spec.n_follicles):
        _add_follicle(rng, plan)
    for _ in range(spec.n_fat):
        _add_fat(rng, plan)
    for _ in range(spec.n_vessels):
        _add_vessel(rng, plan)
    _add_glands(rng, plan, spec.n_glands)
    tumour, holes = np.zeros_like(tissue), np.zeros_like(tissue)
    for (_, group, _), outline in zip(polygons, outlines, strict=True):
        mask = holes if group in CUT_GROUPS else tumour
        mask |= fill_polygon((width, height), outline)
    plan.ground[tumour & ~holes] = Ground.TUMOUR
    _add_septa(rng, plan)
    return plan


def _draw_tissue(
    rng: np.random.Generator, size: tuple[int, int], tumours: Sequence[NDArray[np.float64]]
) -> NDArray[np.bool_]:
    # A few large pieces whose edge is roughened by noise; a tumour always lies within tissue.
    width, height = size
    pieces = np.zeros((height, width), bool)
    centre = np.array(size) * rng.uniform(0.46, 0.54, 2)
    pieces |= fill_polygon(
        size, blob_outline(rng, tuple(centre), 0.84 * min(size), irregularity=0.1)
    )
    corner = np.array(size) * rng.choice([0.14, 0.86], 2)
    pieces |= fill_polygon(size, blob_outline(rng, tuple(corner), 0.2 * min(size)))
    for outline in tumours:
        middle = outline.mean(axis=0)
        reach = np.hypot(*(outline - middle).T).mean()
        pieces |= fill_polygon(size, middle + (outline - middle) * (1 + 55 / reach))
    coarse = (max(1, width // 8), max(1, height // 8))
    field = ndimage.gaussian_filter(resize(pieces.astype(np.float32), coarse), 2.2)
    field += 0.13 * smooth_noise(rng, coarse, cell_px=7, octaves=2)
    tissue: NDArray[np.bool_] = resize(field, size) > 0.42
    margin = 12  # µm of glass all round
    tissue[:margin] = tissue[-margin:] = False
    tissue[:, :margin] = tissue[:, -margin:] = False
    for outline in tumours:
        tissue |= fill_polygon(size, outline)
    return tissue


def _add_lymphoid(rng: np.random.Generator, plan: Plan, share: float) -> None:
    # Cords of any shape, as the paracortex, rather than round follicles only.
    coarse = tuple(max(1, length // 8) for length in plan.size)
    field = resize(smooth_noise(rng, (coarse[0], coarse[1]), cell_px=22, octaves=3), plan.size)
    tissue = plan.ground == Ground.STROMA
    if share > 0 and tissue.any():
        level = np.quantile(field[tissue][::97], 1 - share)
        plan.ground[tissue & (field > level)] = Ground.LYMPHOID


def _random_place(rng: np.random.Generator, plan: Plan, margin: float) -> NDArray[np.float64]:
    # A point on stroma away from the slide's edge; any point where there is none.
    width, height = plan.size
    points = rng.uniform((margin, margin), (width - margin, height - margin), (60, 2))
    good = np.flatnonzero(plan.at(points) == Ground.STROMA)
    chosen: NDArray[np.float64] = points[good[0] if len(good) else 0]
    return chosen


def _add_follicle(rng: np.random.Generator, plan: Plan) -> None:
    # A germinal centre of large nuclei in a mantle of lymphocytes.
    diameter = rng.uniform(180, 340)
    middle = _random_place(rng, plan, diameter / 2)
    outer = blob_outline(rng, tuple(middle), diameter, irregularity=0.08)
    if (plan.at(outer) == Ground.GLASS).any():
        return
    plan.fill(outer, Ground.LYMPHOID, only=None)
    centre = middle + (outer - middle) * rng.uniform(0.62, 0.78)
    plan.fill(centre, Ground.GERMINAL, only=None)


def _add_fat(rng: np.random.Generator, plan: Plan) -> None:
    # Round white cells, 35 to 70 µm, packed with thin walls between them.
    middle = _random_place(rng, plan, 60)
    reach = rng.uniform(90, 170)
    points = scatter_points(rng, (2 * reach, 2 * reach), spacing=54, jitter=0.14)
    points += middle - reach
    for point in points[np.hypot(*(points - middle).T) < reach * rng.uniform(0.7, 1, len(points))]:
        cell = blob_outline(rng, tuple(point), rng.uniform(40, 51), irregularity=0.05)
        plan.fill(cell, Ground.LUMEN, only=Ground.STROMA)


def _add_vessel(rng: np.random.Generator, plan: Plan) -> None:
    middle = _random_place(rng, plan, 40)
    diameter = rng.uniform(28, 90)
    outer = blob_outline(rng, tuple(middle), diameter, irregularity=0.1)
    squeeze = np.array([1.0, rng.uniform(0.5, 1.0)])
    outer = middle + (outer - middle) * squeeze
    plan.fill(outer, Ground.WALL, only=Ground.STROMA)
    wall = rng.uniform(6, 11) / diameter * 2
    plan.fill(middle + (outer - middle) * (1 - wall), Ground.LUMEN, only=Ground.WALL)
    if rng.random() < 0.6:
        reach = diameter * squeeze.min() * (1 - wall) / 2
        for point in middle + rng.normal(0, 0.4, (int(diameter), 2)) * reach:
            disc = blob_outline(rng, tuple(point), 6.5, irregularity=0.03, n_vertices=16)
            plan.fill(disc, Ground.BLOOD, only=Ground.LUMEN)


def _add_glands(rng: np.random.Generator, plan: Plan, n_glands: int) -> None:
    # In lobules: a few glands close to each other.
    middle = _random_place(rng, plan, 120)
    for number in range(n_glands):
        if number % 5 == 0:
            middle = _random_place(rng, plan, 120)
        point = middle + rng.normal(0, 75, 2)
        diameter = rng.uniform(50, 105)
        outer = blob_outline(rng, tuple(point), diameter, irregularity=0.1)
        if (plan.at(outer) != Ground.STROMA).mean() > 0.35:
            continue
        plan.fill(outer, Ground.EPITHELIUM, only=None)
        depth = rng.uniform(13, 17)  # µm, the height of the epithelium
        inner = point + (outer - point) * max(0.12, 1 - 2 * depth / diameter)
        plan.fill(inner, Ground.LUMEN, only=Ground.EPITHELIUM)
        _add_ring(rng, plan, outer, point, 1 - 2 * 5.5 / diameter)


def _add_ring(
    rng: np.random.Generator,
    plan: Plan,
    outline: NDArray[np.float64],
    middle: NDArray[np.float64],
    share: float,
) -> None:
    # Nuclei in a row along the base, pointing at the lumen.
    ring = middle + (outline - middle) * share
    closed = np.vstack([ring, ring[:1]])
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    places = np.arange(0, length[-1] - 4, rng.uniform(6.4, 7.6))
    places = places + rng.uniform(-0.8, 0.8, len(places))
    points = np.stack([np.interp(places, length, closed[:, axis]) for axis in (0, 1)], axis=-1)
    plan.ring_points.append(points)
    plan.ring_angles.append(np.arctan2(*(points - middle).T[::-1]))


def _add_septa(rng: np.random.Generator, plan: Plan) -> None:
    # Thin bands of stroma part the tumour into nests: the zero lines of a noise.
    tumour = plan.ground == Ground.TUMOUR
    if not tumour.any():
        return
    field = smooth_noise(rng, plan.size, cell_px=85)
    slope = np.hypot(*np.gradient(field))
    septa = np.abs(field) < 8 * slope.clip(0.004, 0.03)
    plan.ground[tumour & septa] = Ground.STROMA
