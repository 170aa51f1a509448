"""Reading patches with k threads, against one; with JPEG decoding, and without.

What `predict` does for a store of coordinates, without a model: batches of 32 neighbouring patches
of 512 px (stride 512 and 256) are read from the slide by k threads (`read_batch`). A slide of real
H&E, 20,000 px, 240 px JPEG tiles. Page cache warm; opening the slide is not counted.

- ``patches/s`` with decoding, for k up to the cores there are: `efficiency` is the rate over k
  times that of one thread, all in one round.
- ``without decoding``: the JPEG decoder is replaced by nothing; what is left is finding tiles and
  copying pixels.
- ``python``: processor time per patch on a slide whose tiles and patches are 15 times smaller (16
  and 34 px) without decoding: as many calls, hardly any pixels. Only one thread at a time can be in
  Python, so its inverse is the most that one process can read on any number of cores; several
  processes (`--workers`, job arrays) have no common limit.

    python benchmarks/scaling.py
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import simplejpeg
import slides
import tifffile

from tiling.build import tile_slide
from tiling.contracts import TileConfig
from tiling.files import write_json
from tiling.readers.tiled_tiff_reader import TiledTiffReader
from tiling.store import PatchStore
from tiling.threads import map_in_threads
from wsi_pipeline.cohort.data import read_batch

RESULT = Path(__file__).parent / "results" / "scaling.json"
SIDE, PATCH, BATCH = 20_000, 512, 32
AIM = 0.85  # efficiency


def decode_nothing(_data, _colours, buffer=None):
    """Stand in for `simplejpeg.decode_jpeg`."""
    return buffer


def rate(store, threads, n_patches, *, decodes):
    """Patches per second, read in the order of the store from a slide just opened."""
    store.close()
    read_batch(store, np.arange(n_patches - BATCH, n_patches))  # opens it, and compares pixels
    decoder = simplejpeg.decode_jpeg if decodes else decode_nothing
    batches = [np.arange(i, i + BATCH) for i in range(0, n_patches - 2 * BATCH, BATCH)]
    with mock.patch.object(simplejpeg, "decode_jpeg", decoder):
        start = time.perf_counter()
        for _ in map_in_threads(lambda rows: read_batch(store, rows), batches, threads=threads):
            pass
        return len(batches) * BATCH / (time.perf_counter() - start)


def python_us(folder, rounds):
    """Microseconds of Python per patch, at as many tiles per patch as 512 px have of 240 px."""
    path = folder / "small.tif"
    noise = np.random.default_rng(0).integers(0, 255, (1600, 1600, 3), np.uint8)
    options = {"tile": (16, 16), "compression": "jpeg", "photometric": "ycbcr"}
    tifffile.imwrite(path, noise, subsampling=(2, 2), metadata=None, **options)
    found = {}
    with (
        TiledTiffReader(path) as slide,
        mock.patch.object(simplejpeg, "decode_jpeg", decode_nothing),
    ):
        for stride, step in ((512, 34), (256, 17)):
            places = [(x, y) for y in range(3, 800, step) for x in range(5, 1500, step)]
            times = []
            for _ in range(rounds):
                slide._pixels.drop_decoded()
                start = time.thread_time()
                for place in places:
                    slide.read_region(place, 0, (34, 34))
                times.append((time.thread_time() - start) / len(places) * 1e6)
            found[stride] = statistics.median(times)
    return found


def measure(store, threads, rounds, n_patches):
    """Rates with and without decoding for each number of threads, in turn."""
    with_jpeg = {k: [] for k in threads}
    without = {k: [] for k in threads}
    for _ in range(rounds):
        for k in threads:
            with_jpeg[k].append(rate(store, k, n_patches, decodes=True))
            without[k].append(rate(store, k, n_patches, decodes=False))
    one = with_jpeg[1]
    return {
        "patches_per_s": {k: statistics.median(v) for k, v in with_jpeg.items()},
        "efficiency": {
            k: statistics.median(a / b / k for a, b in zip(v, one, strict=True))
            for k, v in with_jpeg.items()
        },
        "without_decoding_per_s": {k: statistics.median(v) for k, v in without.items()},
    }


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    threads = [k for k in (1, 2, 4, 8, 16, 32) if k <= max(2, cores)]
    result = {
        "benchmark": "scaling",
        "cores": cores,
        "aim": AIM,
        "rounds": arguments.rounds,
        "python": platform.python_version(),
        "strides": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = slides.make_slide(folder / "bench.svs", SIDE)
        for stride in (512, 256):
            config = TileConfig(patch_px=PATCH, stride_px=stride, store="coords")
            out, content = folder / f"{stride}.zarr", folder / "content.json"
            tile_slide(slide, out, slide_id="bench", config=config, content_cache=content)
            with PatchStore.open(out, slide_path=slide, content_cache=content) as store:
                n_patches = min(arguments.patches, len(store))
                found = measure(store, threads, arguments.rounds, n_patches)
            result["strides"][stride] = found
        for stride, spent in python_us(folder, arguments.rounds).items():
            result["strides"][stride] |= {"python_us": spent, "one_process_at_most": 1e6 / spent}
    print(json.dumps(result, indent=1))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
