"""Draw docs/images/froc-definitions.png: one model on two slides, counted by both definitions.

Only tumours and scores are placed by hand: lesions, hits and curves are computed by the functions
of the program.

    python docs/make_froc_figure.py
"""

import sys
from pathlib import Path

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wsi_pipeline.contracts import Detections, FrocCurve, Heatmap  # noqa: E402
from wsi_pipeline.evaluation.froc import (  # noqa: E402
    build_froc,
    collect_events,
    match_detections,
    match_patches,
)
from wsi_pipeline.evaluation.lesions import (  # noqa: E402
    LesionReference,
    label_polygons,
    no_lesions,
)
from wsi_pipeline.heatmaps.nms import detect  # noqa: E402

MPP = 0.25  # µm per level-0 px
PATCH = 512  # level-0 px; the inner square is half as wide
N = 12  # patches along a side
SIDE = N * PATCH
THRESHOLD = 0.5
# Two outlines 50 µm apart, one far away, and isolated tumour cells. Centre and radius, level-0 px.
OUTLINES = [((1500, 1500), 620), ((2900, 1500), 580), ((4500, 4300), 700), ((1300, 4700), 230)]
# Where the model is hot: centre, spread, height.
HOT = [((1500, 1500), 700, 0.95), ((4700, 4300), 650, 0.8), ((1300, 4700), 420, 0.7)]
HOT_FALSE = [((4900, 900), 450, 0.75)]
HOT_NORMAL = [((2300, 3300), 800, 0.85)]
INK, HIT, FALSE, NOTHING = "#222222", "#0072b2", "#d55e00", "#888888"


def scores_of(spots) -> np.ndarray:
    """Scores of the grid's patches, (N, N), rows first."""
    y, x = (np.mgrid[:N, :N] + 0.5) * PATCH
    values = np.full((N, N), 0.05)
    for (cx, cy), spread, height in spots:
        bump = height * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * spread**2))
        values = np.maximum(values, bump)
    return values.astype(np.float32)


def find_detections(values: np.ndarray) -> Detections:
    """Find detections in a heatmap as the program does."""
    return detect(Heatmap(values, (PATCH, PATCH), (SIDE, SIDE)), threshold=THRESHOLD, radius_px=2)


def pairs_of(outlines) -> np.ndarray:
    """(M, 2) patch, outline: where an inner square meets an outline."""
    found = []
    for row in range(N):
        for col in range(N):
            x, y = col * PATCH + PATCH / 4, row * PATCH + PATCH / 4
            square = shapely.box(x, y, x + PATCH / 2, y + PATCH / 2)
            found += [(row * N + col, i) for i, o in enumerate(outlines) if o.intersects(square)]
    return np.array(found, dtype=np.int64)


def start(axes: Axes, title: str, outlines=()) -> None:
    """Draw a slide with its outlines."""
    axes.set_xlim(0, SIDE)
    axes.set_ylim(SIDE, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9)
    for outline in outlines:
        axes.plot(*outline.exterior.xy, color=INK, lw=1.2)


def draw_points(
    axes: Axes, reference: LesionReference, found: Detections, outlines, title: str
) -> None:
    """Draw the counted lesions, and the outcome of each detection."""
    start(axes, title, outlines)
    row, col = np.indices((SIDE // 32, SIDE // 32))
    label = reference.label_at(col.ravel() * 32 + 16, row.ravel() * 32 + 16).reshape(row.shape)
    shade = np.zeros((*label.shape, 4))
    for i, is_itc in enumerate(reference.is_itc.tolist()):
        shade[label == i + 1] = (0.5, 0.5, 0.5, 0.25) if is_itc else (0, 0.45, 0.7, 0.22)
    axes.imshow(shade, extent=(0, SIDE, SIDE, 0), interpolation="nearest")
    under = reference.label_at(found.x, found.y)
    for x, y, score, at in zip(found.x, found.y, found.scores, under, strict=True):
        colour, word = FALSE, "FP"
        if at:
            itc = reference.is_itc[at - 1]
            colour, word = (NOTHING, "nothing") if itc else (HIT, "hit")
        axes.plot(x, y, "o", color=colour, ms=5)
        axes.text(x + 150, y - 130, f"{score:.2f} {word}", color=colour, fontsize=7.5)


def draw_patches(axes: Axes, values: np.ndarray, pairs, outlines, title: str) -> None:
    """Draw the patches above the threshold, and the outcome of each."""
    start(axes, title, outlines)
    on_tumour = set(pairs[:, 0].tolist()) if len(pairs) else set()
    for row in range(N):
        for col in range(N):
            if values[row, col] < THRESHOLD:
                continue
            colour = HIT if row * N + col in on_tumour else NOTHING if outlines else FALSE
            x, y = col * PATCH, row * PATCH
            axes.add_patch(Rectangle((x, y), PATCH, PATCH, fc=colour, alpha=0.28, lw=0))
            inner = (x + PATCH / 4, y + PATCH / 4)
            axes.add_patch(Rectangle(inner, PATCH / 2, PATCH / 2, fc="none", ec=colour, lw=0.8))


def draw_curve(axes: Axes, curve: FrocCurve, title: str, x_label: str) -> None:
    """Draw a curve with its score."""
    axes.step(curve.avg_fps, curve.sensitivity, where="post", color=HIT)
    axes.plot(curve.avg_fps, curve.sensitivity, ".", color=HIT)
    axes.set_xlim(0, 8)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(f"found of {curve.n_lesions}", fontsize=8)
    axes.set_title(f"{title}: score {curve.score:.2f}", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.92")


def main() -> None:
    """Make the picture."""
    outlines = [shapely.Point(c).buffer(r) for c, r in OUTLINES]
    tumour, normal = scores_of(HOT + HOT_FALSE), scores_of(HOT_NORMAL)
    found, found_normal = find_detections(tumour), find_detections(normal)
    reference = label_polygons(
        shapely.MultiPolygon(outlines), mpp=MPP, slide_size=(SIDE, SIDE), downsample=32
    )
    nothing = no_lesions(mpp=MPP, size=(SIDE, SIDE))
    pairs = pairs_of(outlines)
    none = np.zeros((0, 2), np.int64)
    points = [match_detections(reference, found), match_detections(nothing, found_normal)]
    patches = [
        match_patches(tumour.ravel(), pairs, n_lesions=len(outlines), normal=False),
        match_patches(normal.ravel(), none, n_lesions=0, normal=True),
    ]
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    n_itc = reference.n_itc
    title = f"camelyon16: {reference.n_lesions} lesions, {n_itc} ITC"
    draw_points(axes[0, 0], reference, found, outlines, title)
    draw_points(axes[0, 1], nothing, found_normal, [], "a normal slide: every point an FP")
    draw_patches(axes[1, 0], tumour, pairs, outlines, f"patch: {len(outlines)} tumours")
    draw_patches(axes[1, 1], normal, none, [], "a normal slide: every patch an FP")
    for row, hits, name, per in (
        (0, points, "camelyon16", "FPs on both slides / 2"),
        (1, patches, "patch", "FPs on the normal slide / 1"),
    ):
        curve = build_froc(collect_events(hits, definition=name))
        draw_curve(axes[row, 2], curve, name, per)
    figure.savefig(ROOT / "docs" / "images" / "froc-definitions.png", dpi=110)


if __name__ == "__main__":
    main()
