"""Training batches from the coordinates of many slides: memory, and the rate against the store.

Batches of 32 patches of 512 px, each from a random slide, as training draws them (`load_batch`):
from N stores without pixels (``store: coords``), and from one store with the same pixels. The
slide is real H&E of 40,000 px (as `slides.make_slide` draws it) opened N times, so its pages are in
the cache of the system; from a disk, reading the compressed tiles comes on top. Each N is a process
of its own; peak memory is the whole process's, PyTorch's 300 MiB included.

    python benchmarks/open_slides.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import slides

from tiling.build import tile_slide
from tiling.contracts import TileConfig
from tiling.files import write_json
from tiling.store import PatchStore
from wsi_pipeline.cohort.data import load_batch

RESULT = Path(__file__).parent / "results" / "open_slides.json"
SIDE, PATCH, BATCH = 40_000, 512, 32
SLIDES = (1, 10, 100, 400)
AIM_MIB = 4096


def draw(folder, kind, n_slides, n_batches):
    """Draw batches in this process; print the rate, and the peak memory."""
    options = {"slide_path": folder / "bench.svs", "content_cache": folder / "content.json"}
    stores = [
        PatchStore.open(folder / f"{kind}.zarr", random=True, **options) for _ in range(n_slides)
    ]
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(n_batches):
        slide = rng.integers(0, n_slides, BATCH)
        load_batch(stores, slide, rng.integers(0, len(stores[0]), BATCH))
    seconds = time.perf_counter() - start
    for store in stores:
        store.close()
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"patches_per_s": n_batches * BATCH / seconds, "peak_mib": peak}))


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, nargs="+", default=SLIDES)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--slide", type=Path, help="an existing slide; default: one is drawn")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--draw", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw:
        folder, kind, n_slides = arguments.draw
        draw(Path(folder), kind, int(n_slides), arguments.batches)
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.slide:
            (folder / "bench.svs").symlink_to(arguments.slide.resolve())
        else:
            slides.make_slide(folder / "bench.svs", SIDE)
        for kind in ("coords", "patches"):
            config = TileConfig(patch_px=PATCH, store=kind)
            tile_slide(
                folder / "bench.svs", folder / f"{kind}.zarr", slide_id="bench", config=config,
                content_cache=folder / "content.json", threads=2,
            )  # fmt: skip
        for kind, n_slides in [("patches", 1), *(("coords", n) for n in arguments.slides)]:
            again = ["--draw", str(folder), kind, str(n_slides)]
            again += ["--batches", str(arguments.batches)]
            done = subprocess.run(
                [sys.executable, __file__, *again], check=True, capture_output=True, text=True
            )
            rows.append({"store": kind, "slides": n_slides} | json.loads(done.stdout))
            print(json.dumps(rows[-1]), flush=True)
    write_json(arguments.out, {"benchmark": "open_slides", "aim_mib": AIM_MIB, "results": rows})


if __name__ == "__main__":
    main()
