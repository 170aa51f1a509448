"""Lesion FROC of 129 slides against the published method (docs/speed.md).

Three claims, each checked to give identical numbers before it is timed:

- reference: lesions of real CAMELYON16 polygons (``--annotations DIR``; drawn ones where it is
  absent), against the published method on the whole level-5 mask: distance transform, holes,
  labels, axes. Both start from polygons; the published side's rasterising is not counted, ours is.
  A second measurement starts both from the same mask. Memory: peak above the start, each in a
  process of its own, mask and imports not counted.
- curve: 6,500 false positives, against one pass over all scores per threshold.
- bootstrap: 1000 replicates of 129 slides, seconds.

Interleaved; prints median and range of the ratio; writes benchmarks/results/froc.json.

    python benchmarks/froc.py --annotations FOLDER
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tiling.annotation.reading import read_annotation  # noqa: E402
from tiling.files import write_json  # noqa: E402
from wsi_pipeline.evaluation.bootstrap import draw_resamples  # noqa: E402
from wsi_pipeline.evaluation.froc import (  # noqa: E402
    RATES,
    SlideHits,
    build_froc,
    collect_events,
    replicate_sensitivities,
)
from wsi_pipeline.evaluation.lesions import label_mask, label_polygons  # noqa: E402

MPP, DOWNSAMPLE = 0.243, 32
SHAPE = (6930, 3287)  # of the mask of the published measurements


def read_polygons(folder: Path | None) -> shapely.MultiPolygon:
    """Combine the lesions of several slides on one of 6930 x 3287 mask pixels."""
    if folder is not None and (folder / "Tumor_064.json").is_file():
        found = [
            lesion
            for name in (
                "Tumor_064",
                "Tumor_010",
                "Tumor_028",
                "Tumor_015",
                "Tumor_013",
                "Tumor_032",
            )
            for lesion in read_annotation(folder / f"{name}.json").lesions
        ]
        lesions = shapely.union_all(found)
    else:
        random = np.random.default_rng(0)
        centres = random.random((25, 2)) * [SHAPE[1] * 25, SHAPE[0] * 25] + 4000
        sizes = random.choice([100, 400, 1500, 3500], 25)
        lesions = shapely.union_all(
            [shapely.Point(c).buffer(s) for c, s in zip(centres, sizes, strict=True)]
        )
    slide = shapely.box(0, 0, SHAPE[1] * DOWNSAMPLE, SHAPE[0] * DOWNSAMPLE)
    parts = [part for part in shapely.get_parts(lesions) if slide.covers(part)]
    return shapely.MultiPolygon(parts)


def draw_mask(tumour: shapely.MultiPolygon) -> NDArray[np.bool_]:
    """Draw the whole mask by testing each pixel's centre."""
    shapely.prepare(tumour)
    mask = np.zeros(SHAPE, dtype=bool)
    x = (np.arange(SHAPE[1]) + 0.5) * DOWNSAMPLE
    for row in range(SHAPE[0]):
        mask[row] = shapely.contains_xy(tumour, x, (row + 0.5) * DOWNSAMPLE)
    return mask


def published_lesions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find lesions as the published evaluation does: on the whole mask."""
    distance = ndimage.distance_transform_edt(255 - mask.astype(np.uint8) * 255)
    filled = ndimage.binary_fill_holes(distance < 75 / (MPP * DOWNSAMPLE * 2))
    labels = label(filled, connectivity=2)
    axes = [region.axis_major_length for region in regionprops(labels)]
    return labels, np.array(axes) < 275 / (MPP * DOWNSAMPLE)


def published_curve(
    fps: list[float], best: list[float], *, n_slides: int, n_lesions: int
) -> NDArray[np.float64]:
    """Count at each threshold by looking at every score again, held in lists as published."""
    points = [(0.0, 0.0)]
    for threshold in sorted({*fps, *best}, reverse=True):
        n_fps = (np.asarray(fps) >= threshold).sum()
        n_hits = (np.asarray(best) >= threshold).sum()
        points.append((n_fps / n_slides, n_hits / n_lesions))
    return np.array(points)


def measure(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> dict[str, object]:
    """Time both in turn."""
    ours()
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        times.append((middle - start, time.perf_counter() - middle))
    ratios = [b / a for a, b in times]
    return {
        "ours_s": statistics.median(a for a, _ in times),
        "theirs_s": statistics.median(b for _, b in times),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "repeats": repeats,
    }


def _peak(work: str, folder: Path | None, results: "multiprocessing.Queue[float]") -> None:
    tumour = read_polygons(folder)
    mask = draw_mask(tumour) if work != "polygons" else np.zeros((0, 0), bool)
    label_polygons(shapely.MultiPolygon([shapely.box(0, 0, 320, 320)]), mpp=MPP)  # warm imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _high_water_mib()
    if work == "polygons":
        label_polygons(tumour, mpp=MPP)
    elif work == "mask":
        label_mask(mask, downsample=DOWNSAMPLE, mpp=MPP)
    else:
        published_lesions(mask)
    results.put(_high_water_mib() - before)


def _high_water_mib() -> float:
    # Not ru_maxrss: a spawned process inherits its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak_mib(work: str, folder: Path | None) -> float:
    """Measure the peak memory above the start, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=_peak, args=(work, folder, results))
    process.start()
    value = results.get()
    process.join()
    return value


def bench_reference(folder: Path | None, repeats: int) -> dict[str, object]:
    """Compare lesion finding."""
    tumour = read_polygons(folder)
    mask = draw_mask(tumour)
    labels, itc = published_lesions(mask)
    found = label_mask(mask, downsample=DOWNSAMPLE, mpp=MPP)
    image = np.zeros(SHAPE, np.int64)
    for window in found.windows:
        height, width = window.labels.shape
        image[window.row : window.row + height, window.col : window.col + width] = window.labels
    assert np.array_equal(image, labels)
    assert np.array_equal(found.is_itc, itc)
    size = (SHAPE[1] * DOWNSAMPLE, SHAPE[0] * DOWNSAMPLE)
    drawn = label_polygons(tumour, mpp=MPP, slide_size=size)
    assert drawn.n_lesions == np.count_nonzero(~itc)
    return {
        "n_lesions": found.n_lesions,
        "n_itc": found.n_itc,
        "polygons": measure(
            lambda: label_polygons(tumour, mpp=MPP, slide_size=size),
            lambda: published_lesions(mask),
            repeats,
        ),
        "mask": measure(
            lambda: label_mask(mask, downsample=DOWNSAMPLE, mpp=MPP),
            lambda: published_lesions(mask),
            repeats,
        ),
        "peak_mib": {w: peak_mib(w, folder) for w in ("polygons", "mask", "published")},
    }


def draw_hits(n_slides: int = 129, n_fps: int = 6500) -> list[SlideHits]:
    """Make 129 slides, 49 with tumour, like the test set's, with a detector's scores."""
    random = np.random.default_rng(0)
    owner = random.integers(0, n_slides, n_fps)
    scores = random.random(n_fps) ** 3
    hits = []
    for i in range(n_slides):
        best = random.random(random.integers(1, 9)) if i < 49 else np.zeros(0)
        best[random.random(best.size) < 0.2] = np.nan
        hits.append(SlideHits(scores[owner == i], best, normal=i >= 49))
    return hits


def bench_curve(repeats: int) -> dict[str, object]:
    """Compare drawing the curve, and time the bootstrap."""
    hits = draw_hits()
    fps = np.concatenate([h.false_positives for h in hits]).tolist()
    best = np.concatenate([h.best for h in hits])
    found = best[~np.isnan(best)].tolist()

    def ours() -> NDArray[np.float64]:
        curve = build_froc(collect_events(hits, definition="camelyon16"))
        return np.stack([curve.avg_fps, curve.sensitivity], axis=1)

    def theirs() -> NDArray[np.float64]:
        return published_curve(fps, found, n_slides=len(hits), n_lesions=best.size)

    assert np.allclose(ours(), theirs(), rtol=0, atol=1e-15)
    events = collect_events(hits, definition="camelyon16")
    times, slides = [], [str(number) for number in range(len(hits))]
    for seed in range(repeats):
        start = time.perf_counter()
        resamples = draw_resamples(slides, n_replicates=1000, seed=seed, unit="slide")
        replicate_sensitivities(events, resamples.weights, rates=RATES)
        times.append(time.perf_counter() - start)
    return {
        "curve": measure(ours, theirs, repeats),
        "bootstrap_1000_s": statistics.median(times),
        "bootstrap_1000_range_s": [min(times), max(times)],
    }


def main() -> None:
    """Run all three, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotations", type=Path, help="folder of CAMELYON16 JSON files")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/froc.json")
    args = parser.parse_args()
    default = Path(os.environ.get("WSI_PIPELINE_DATA", "data")) / "annotations/camelyon16"
    folder = args.annotations or (default if default.is_dir() else None)
    result = {
        "source": "CAMELYON16" if folder else "drawn",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        **bench_reference(folder, args.repeats),
        **bench_curve(args.repeats),
    }
    for name in ("polygons", "mask", "curve"):
        row = result[name]
        if isinstance(row, dict):
            low, high = row["ratio_range"]
            print(f"{name}: {row['ratio_median']:.1f}x ({low:.1f} to {high:.1f})")
    print(f"peak memory, MiB: {result['peak_mib']}")
    print(f"1000 bootstraps: {result['bootstrap_1000_s']:.2f} s")
    write_json(args.out, result)


if __name__ == "__main__":
    main()
