"""Paint one slide of synthetic H&E-like tissue whose tumours are known exactly.

Stain is applied to the grounds of a plan, nuclei are placed by kind, and light is transmitted.
Dense dark lymphoid tissue and glands mislead models that use colour only; a tumour differs by the
size and crowding of its nuclei.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.demo import cells
from wsi_pipeline.demo.layout import Ground, Plan, Polygon, make_plan
from wsi_pipeline.demo.specs import CUT_GROUPS, MPP, SlideSpec
from wsi_pipeline.demo.textures import (
    Floats,
    blob_outline,
    draw_fibres,
    draw_stain,
    fill_polygon,
    resize,
    smooth_noise,
    stain_image,
)

# Stain of each ground between its nuclei: haematoxylin, eosin, share of eosin that is fibres.
GROUND_STAIN = np.array(
    [
        (0.00, 0.03, 0.0),  # glass
        (0.05, 0.44, 0.7),  # stroma
        (0.20, 0.33, 0.5),  # lymphoid: little between the cells
        (0.22, 0.46, 0.3),  # tumour: cytoplasm, a little blue
        (0.22, 0.44, 0.2),  # epithelium
        (0.00, 0.05, 0.0),  # lumen
        (0.04, 0.62, 0.5),  # wall of a vessel
        (0.00, 1.00, 0.3),  # blood
        (0.20, 0.40, 0.3),  # germinal centre
    ],
    np.float32,
)


Infiltrated = tuple[shapely.Polygon, float]  # outline in µm, share of lymphocytes


@dataclass(frozen=True)
class Drawn:
    """A painted slide."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB, level 0
    polygons: tuple[Polygon, ...]  # as annotated; level-0 px


def seed_rng(seed: int, *names: str) -> np.random.Generator:
    """Create a generator that depends only on a seed and names."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def paint_slide(spec: SlideSpec, *, seed: int) -> Drawn:
    """Paint a slide.

    Parameters
    ----------
    spec : SlideSpec
    seed : int
        The same spec and seed give the same pixels, whatever else is drawn.

    Returns
    -------
    drawn : Drawn
        Tumour polygons first, each followed by its hole, if any.
    """
    rng = seed_rng(seed, spec.patient, spec.slide_id)
    polygons = _draw_tumours(rng, spec)
    plan = make_plan(rng, spec, polygons)
    haematoxylin, eosin, direction = _lay_grounds(rng, plan, spec.size)
    outlines = (points for _, group, points in polygons if group not in CUT_GROUPS)
    infiltrated = [
        (shapely.Polygon(points * MPP), tumour.infiltrated)
        for points, tumour in zip(outlines, spec.tumours, strict=True)
        if tumour.infiltrated
    ]
    _lay_cells(rng, plan, haematoxylin, direction, infiltrated)
    image = stain_image(haematoxylin, eosin, draw_stain(seed_rng(seed, spec.patient)))
    _draw_dust(rng, image)
    for colour in spec.pens:
        _draw_pen(rng, image, colour)
    return Drawn(image, polygons)


def _draw_tumours(rng: np.random.Generator, spec: SlideSpec) -> tuple[Polygon, ...]:
    polygons = []
    for number, tumour in enumerate(spec.tumours):
        centre = (tumour.at[0] * spec.size[0], tumour.at[1] * spec.size[1])
        outline = blob_outline(rng, centre, tumour.diameter_um / MPP)
        polygons.append((f"Annotation {number}", tumour.group, outline))
        if tumour.hole_um:
            hole = blob_outline(rng, centre, tumour.hole_um / MPP, irregularity=0.1)
            polygons.append((f"Annotation {number} hole", tumour.hole_group, hole))
    # Two decimals are what the file keeps: what is drawn is exactly what is annotated.
    return tuple((name, group, points.round(2)) for name, group, points in polygons)


# ---------------------------------------------------------------- stain


def _lay_grounds(
    rng: np.random.Generator, plan: Plan, size: tuple[int, int]
) -> tuple[Floats, Floats, Floats]:
    base = GROUND_STAIN[plan.ground]  # (H, W, 3)
    haematoxylin, eosin, fibre_share = (
        ndimage.gaussian_filter(base[..., k], 0.9) for k in range(3)
    )
    fibres, direction = draw_fibres(rng, plan.size, px_um=1.0)
    patchy = smooth_noise(rng, plan.size, cell_px=160)
    eosin *= (1 + fibre_share * fibres + 0.12 * patchy).clip(0.12, 2.6)
    haematoxylin *= (1 + 0.15 * patchy).clip(0.3, 2)
    grain = _grain(rng, size)
    full_h, full_e = (resize(field, size, smooth=False) for field in (haematoxylin, eosin))
    full_e *= 1 + np.float32(0.16) * grain
    full_e += np.float32(0.006) * grain
    full_h *= 1 + np.float32(0.25) * grain
    return full_h, full_e, direction


def _grain(rng: np.random.Generator, size: tuple[int, int], *, side: int = 509) -> Floats:
    # Fine noise of unit strength, repeated, which is not visible under everything else.
    tile = ndimage.gaussian_filter(rng.standard_normal((side, side), np.float32), 0.9, mode="wrap")
    tile /= tile.std()
    repeats = (-(-size[1] // side), -(-size[0] // side))
    grain: Floats = np.tile(tile, repeats)[: size[1], : size[0]]
    return grain


# ---------------------------------------------------------------- nuclei


def _lay_cells(
    rng: np.random.Generator,
    plan: Plan,
    haematoxylin: Floats,
    direction: Floats,
    infiltrated: Sequence[Infiltrated],
) -> None:
    _lay_stroma(rng, plan, haematoxylin, direction)
    _lay_lymphocytes(rng, plan, haematoxylin)
    _lay_germinal(rng, plan, haematoxylin)
    _lay_glands(rng, plan, haematoxylin)
    _lay_tumour(rng, plan, haematoxylin, infiltrated)


def _points_on(
    rng: np.random.Generator, plan: Plan, ground: Ground, *, spacing_um: float, keep: float
) -> NDArray[np.float64]:
    points = cells.scatter_points(rng, plan.size, spacing=spacing_um)
    points = points[plan.at(points) == ground]
    kept: NDArray[np.float64] = points[rng.random(len(points)) < keep]
    return kept


def _lay(
    rng: np.random.Generator,
    canvas: Floats,
    points_um: NDArray[np.float64],
    kind: cells.CellKind,
) -> None:
    stamps = cells.draw_stamps(rng, kind, mpp=MPP)
    choice = rng.integers(0, len(stamps), len(points_um))
    cells.place_stamps(canvas, points_um / MPP, stamps, choice)


def _lay_oriented(
    rng: np.random.Generator,
    canvas: Floats,
    points_um: NDArray[np.float64],
    angles: NDArray[np.float64],
    kind: cells.CellKind,
) -> None:
    stamps = cells.draw_stamps(rng, kind, mpp=MPP, oriented=True)
    choice = cells.oriented_choice(rng, kind, angles)
    cells.place_stamps(canvas, points_um / MPP, stamps, choice)


def _lay_stroma(rng: np.random.Generator, plan: Plan, canvas: Floats, direction: Floats) -> None:
    points = _points_on(rng, plan, Ground.STROMA, spacing_um=15, keep=0.5)
    kind = rng.random(len(points))
    spindle = points[kind < 0.55]
    x, y = spindle.astype(np.int64).T
    angles = direction[y, x] + rng.normal(0, 0.25, len(spindle))
    _lay_oriented(rng, canvas, spindle, angles, cells.FIBROBLAST)
    _lay(rng, canvas, points[(kind >= 0.55) & (kind < 0.85)], cells.STROMAL)
    _lay(rng, canvas, points[kind >= 0.85], cells.LYMPHOCYTE)


def _lay_lymphocytes(rng: np.random.Generator, plan: Plan, canvas: Floats) -> None:
    points = cells.scatter_points(rng, plan.size, spacing=6.7)
    # Shifted by a random offset, so that they extend into the stroma without a sharp edge.
    near = plan.at(points + rng.normal(0, 7, points.shape)) == Ground.LYMPHOID
    here = np.isin(plan.at(points), (Ground.LYMPHOID, Ground.STROMA))
    _lay(rng, canvas, points[near & here & (rng.random(len(points)) < 0.93)], cells.LYMPHOCYTE)


def _lay_glands(rng: np.random.Generator, plan: Plan, canvas: Floats) -> None:
    if not plan.ring_points:
        return
    points, angles = np.concatenate(plan.ring_points), np.concatenate(plan.ring_angles)
    whole = plan.at(points) == Ground.EPITHELIUM
    _lay_oriented(rng, canvas, points[whole], angles[whole], cells.EPITHELIAL)


def _lay_germinal(rng: np.random.Generator, plan: Plan, canvas: Floats) -> None:
    if not (plan.ground == Ground.GERMINAL).any():
        return
    points = _points_on(rng, plan, Ground.GERMINAL, spacing_um=10.5, keep=0.96)
    small = rng.random(len(points)) < 0.2
    _lay(rng, canvas, points[small], cells.LYMPHOCYTE)
    _lay(rng, canvas, points[~small], cells.CENTROBLAST)


def _lay_tumour(
    rng: np.random.Generator, plan: Plan, canvas: Floats, infiltrated: Sequence[Infiltrated]
) -> None:
    points = _points_on(rng, plan, Ground.TUMOUR, spacing_um=13.5, keep=0.96)
    for outline, share in infiltrated:
        dense = _points_on(rng, plan, Ground.TUMOUR, spacing_um=6.7, keep=share)
        _lay(rng, canvas, dense[shapely.contains_xy(outline, *dense.T)], cells.LYMPHOCYTE)
        lost = shapely.contains_xy(outline, *points.T) & (rng.random(len(points)) < share)
        points = points[~lost]
    immune = rng.random(len(points)) < 0.05  # lymphocytes come to fight
    _lay(rng, canvas, points[immune], cells.LYMPHOCYTE)
    _lay(rng, canvas, points[~immune], cells.TUMOUR)


# ---------------------------------------------------------------- on the glass


def _draw_dust(rng: np.random.Generator, image: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(8, 24))):
        radius = int(rng.integers(3, 16))
        x, y = (int(v) for v in rng.uniform((0, 0), (width, height)))
        outline = blob_outline(rng, (x, y), radius * 1.2, irregularity=0.25)
        _shade(image, outline, rng.uniform(0.35, 0.75, 3), blur_px=1.5, margin=6)


def _draw_pen(
    rng: np.random.Generator, image: NDArray[np.uint8], colour: tuple[int, int, int]
) -> None:
    # A felt-tip's stroke: a wavy band with round ends that lets a little light through.
    height, width = image.shape[:2]
    start, end = rng.uniform(0.05, 0.3, 2), rng.uniform(0.6, 0.95, 2)
    if rng.random() < 0.5:
        start[0], end[0] = end[0], start[0]
    t = np.linspace(0, 1, 60)
    bend = rng.uniform(-0.3, 0.3) * np.sin(np.pi * t) + 0.02 * np.sin(9 * t + rng.uniform(0, 7))
    normal = np.array([start[1] - end[1], end[0] - start[0]])
    line = (start + (end - start) * t[:, None] + bend[:, None] * normal) * (width, height)
    band = shapely.LineString(line).buffer(rng.uniform(30, 60) / MPP)
    outline = np.asarray(band.exterior.coords)
    _shade(image, outline, np.array(colour) / 255, blur_px=5, margin=24)


def _shade(
    image: NDArray[np.uint8],
    outline: NDArray[np.float64],
    transmission: NDArray[np.float64],
    *,
    blur_px: float,
    margin: int,
) -> None:
    # Multiply the light within an outline, softly towards its edge, in place.
    height, width = image.shape[:2]
    low, high = outline.min(axis=0) - margin, outline.max(axis=0) + margin
    left, top = (max(0, int(v)) for v in low)
    right, bottom = min(width, int(high[0])), min(height, int(high[1]))
    if right <= left or bottom <= top:
        return
    inside = fill_polygon((right - left, bottom - top), outline - (left, top))
    cover = ndimage.gaussian_filter(inside.astype(np.float32), blur_px)[..., None]
    light = 1 - cover * (1 - transmission.astype(np.float32))
    window = image[top:bottom, left:right]
    window[:] = (window * light).astype(np.uint8)
