"""Random patches for training from the store, against indexing the array with zarr-python.

The same patches of one finished store (512 x 512, shards as `tile` writes them), in the same random
order, page cache warm: `PatchStore.read` in batches, and `array[i]` patch by patch as a data set
of one's own would. Both give the same bytes.

    python benchmarks/random_read.py
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import slides
import zarr

from tiling.build import tile_slide
from tiling.contracts import TileConfig
from tiling.files import write_json
from tiling.store import PatchStore

RESULT = Path(__file__).parent / "results" / "random_read.json"
BATCH, N_READ = 32, 640


def read_ours(store, rows):
    """Batches through the store."""
    for first in range(0, len(rows), BATCH):
        yield store.read(rows[first : first + BATCH])


def read_zarr(array, rows):
    """The same batches, patch by patch."""
    for first in range(0, len(rows), BATCH):
        yield np.stack([array[int(row)] for row in rows[first : first + BATCH]])


def rate(batches):
    """Patches per second."""
    start, n = time.perf_counter(), 0
    for batch in batches:
        n += len(batch)
    return n / (time.perf_counter() - start)


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = arguments.slide or slides.make_slide(folder / "bench.svs", 8000)
        config = TileConfig(patch_px=512, stride_px=256)
        tile_slide(slide, folder / "s.zarr", slide_id="bench", config=config, threads=2)
        array = zarr.open_group(folder / "s.zarr", mode="r")["patches"]
        with PatchStore.open(folder / "s.zarr") as store:
            rows = rng.permutation(len(store))[:N_READ]
            for a, b in zip(read_ours(store, rows), read_zarr(array, rows), strict=True):
                np.testing.assert_array_equal(a, b)
            for _ in range(arguments.rounds):
                ours.append(rate(read_ours(store, rows)))
                theirs.append(rate(read_zarr(array, rows)))
            n_patches = len(store)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    result = {
        "benchmark": "random_read",
        "patches": n_patches,
        "batch": BATCH,
        "rounds": arguments.rounds,
        "versions": {"python": platform.python_version(), "zarr": zarr.__version__},
        "ours_per_s": statistics.median(ours),
        "zarr_per_s": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }
    print(json.dumps(result, indent=1))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
