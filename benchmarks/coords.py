"""`tile` with store: coords on a slide of 40,320 x 40,320 px, tissue mask included.

Measured: the whole process, imports included, its processor time, and the part after the imports.
WSInfer 0.6.1 and CLAM are not run: their published times (0.7 s of processor time for the patch
stage, 1.8 s for the whole process) were taken on another machine. For comparison, a plain
OpenSlide process that reads and masks the same thumbnail is timed in the same run, the minimum of
any tool based on OpenSlide.

    python benchmarks/coords.py
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "coords.json"
SIDE = 40_320
STATED = {"wsinfer_0.6.1_cpu_s": 0.7, "clam_process_s": 1.8}

OURS = """
import sys, time, json
from pathlib import Path
from tiling.build import tile_slide
from tiling.contracts import TileConfig
start, cpu = time.perf_counter(), time.process_time()
config = TileConfig(patch_px=512, store="coords")
tile_slide(Path(sys.argv[1]), Path(sys.argv[2]), slide_id="bench", config=config, threads=2)
print(json.dumps({"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}))
"""

BARE = """
import sys, time, json
import numpy as np, openslide
start, cpu = time.perf_counter(), time.process_time()
slide = openslide.OpenSlide(sys.argv[1])
level = slide.get_best_level_for_downsample(16)
rgb = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
mask = (rgb.max(axis=2) - rgb.min(axis=2)) > 20
print(json.dumps({"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}))
"""


def run(code, *arguments):
    """Run one process; seconds and processor seconds, of all of it and after its imports."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"process_s": seconds, "process_cpu_s": cpu, **json.loads(done.stdout)}


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    import slides

    from tiling.files import write_json
    from tiling.store import PatchStore

    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = arguments.slide or slides.make_slide(folder / "bench.svs", SIDE)
        for number in range(arguments.rounds + 1):  # the first warms up
            ours = run(OURS, slide, folder / f"{number}.zarr")
            runs.append((ours, run(BARE, slide)))
        n_patches = len(PatchStore.open(folder / "0.zarr"))
    names = ("ours", "openslide_thumbnail")
    result = {
        name: {key: statistics.median(pair[i][key] for pair in runs[1:]) for key in runs[0][i]}
        for i, name in enumerate(names)
    }
    print(json.dumps({"patches": n_patches, **result}, indent=1))
    machine = {"cpu": platform.machine(), "python": platform.python_version()}
    write_json(
        arguments.out,
        {"benchmark": "coords", "side_px": SIDE, "rounds": arguments.rounds, "machine": machine}
        | {"patches": n_patches, "stated_elsewhere": STATED, **result},
    )


if __name__ == "__main__":
    main()
