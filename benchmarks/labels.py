"""Time and exactness of labelling on real outlines.

For each CAMELYON JSON in a folder: tiles of 512 px every 256 px over the smallest slide that holds
its polygons, labelled by the inner rule; then every tile that some lesion cuts through is measured
again by itself, from the whole outline, by shapely alone.

    python benchmarks/labels.py --annotations FOLDER
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import shapely

from tiling.annotation.labels import label_tiles
from tiling.annotation.reading import read_annotation
from tiling.contracts import Annotation, PatchLabels, TileConfig
from tiling.geometry import inner_squares, resolve_geometry
from tiling.grid import tile_coords

ROOT = Path(__file__).resolve().parents[1]
CONFIG = TileConfig(target_mpp=0.25, patch_px=512, stride_px=256)
GEOMETRY = resolve_geometry(CONFIG, slide_mpp=(0.25, 0.25))


def check(annotation: Annotation, squares: np.ndarray, found: PatchLabels) -> float:
    """Largest error of a share; stops where a label is wrong."""
    boxes = shapely.box(*squares.T)
    near = np.unique(shapely.STRtree(boxes).query(annotation.tumour))
    shapely.prepare(annotation.tumour)
    meets = shapely.intersects(annotation.tumour, boxes[near])
    meets[meets] = ~shapely.touches(annotation.tumour, boxes[near[meets]])
    assert np.array_equal(np.flatnonzero(found.label), near[meets]), "labels differ from shapely's"
    edge = near[meets & ~shapely.covers(annotation.tumour, boxes[near])]
    share = shapely.area(shapely.intersection(annotation.tumour, boxes[edge])) / 256**2
    return float(np.abs(share - found.tumour[edge]).max(initial=0))


def main() -> None:
    """Label every file, check it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("WSI_PIPELINE_DATA", "data")) / "annotations/camelyon16"
    parser.add_argument("--annotations", type=Path, default=default, metavar="DIR")
    folder = parser.parse_args().annotations
    paths = sorted(folder.glob("*.json"))
    if not paths:
        print(f"skipped: no CAMELYON JSON in {folder}; name a folder with --annotations")
        return
    slowest = total = worst = 0.0
    for path in paths:
        started = time.perf_counter()
        annotation = read_annotation(path)
        reading = time.perf_counter() - started
        if not annotation.lesions:
            print(f"{path.stem}: no tumour")
            continue
        size = tuple(int(side) + 513 for side in annotation.tumour.bounds[2:])
        coords = tile_coords(size, tile_l0=(512, 512), stride_l0=(256, 256))
        started = time.perf_counter()
        found = label_tiles(
            coords, geometry=GEOMETRY, annotation=annotation, slide_label=1, config=CONFIG
        )
        seconds = time.perf_counter() - started
        error = check(annotation, inner_squares(coords, GEOMETRY), found)
        slowest, total, worst = max(slowest, seconds), total + seconds, max(worst, error)
        print(
            f"{path.stem}: {len(coords)} tiles, {len(annotation.lesions)} lesions, "
            f"{shapely.get_num_coordinates(annotation.tumour)} vertices: read {reading:.2f} s, "
            f"labelled {seconds:.2f} s, {int(found.label.sum())} positive, error {error:.1e}"
        )
    print(f"slowest {slowest:.2f} s, all {total:.1f} s, largest error of a share {worst:.1e}")


if __name__ == "__main__":
    main()
