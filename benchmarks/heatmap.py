"""The heatmap of a large slide, against one Python step per patch.

Three figures: from coordinates and scores in memory to the heatmap in memory; the same with the
OME-TIFF written and read back; and the command `heatmap` for one slide whose scores are stored, as
a whole process, with the thumbnail read and the picture drawn. The first two count no imports. Peak
memory is what Python and numpy allocate beyond what was there before, the heatmap itself included.

    python benchmarks/heatmap.py
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
import tracemalloc
from pathlib import Path

import numpy as np

from tiling.files import write_json
from wsi_pipeline.heatmaps.files import read_heatmap, write_heatmap
from wsi_pipeline.heatmaps.rasters import rasterise_scores

SLIDE_SIZE = (105_185, 221_772)
N_PATCHES, PATCH = 350_000, 256
COMMAND_SIDE = 10_000  # px of the slide of the command
RESULT = Path(__file__).parent / "results" / "heatmap.json"


def loop_heatmap(coords, scores, pixel):
    """One patch after the other: the usual way."""
    shape = -(-SLIDE_SIZE[1] // pixel), -(-SLIDE_SIZE[0] // pixel)
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for (x, y), score in zip(coords.tolist(), scores.tolist(), strict=True):
        # The first pixel whose centre is at or after the patch's edge.
        left, right = (
            -((pixel - 2 * x) // (2 * pixel)),
            -((pixel - 2 * x - 2 * PATCH) // (2 * pixel)),
        )
        top, bottom = (
            -((pixel - 2 * y) // (2 * pixel)),
            -((pixel - 2 * y - 2 * PATCH) // (2 * pixel)),
        )
        total[top:bottom, left:right] += score
        count[top:bottom, left:right] += 1
    with np.errstate(invalid="ignore"):
        return total / count


def our_heatmap(coords, scores, pixel):
    """What the pipeline calls."""
    return rasterise_scores(
        coords,
        scores,
        slide_size=SLIDE_SIZE,
        patch_l0=(PATCH, PATCH),
        stride_l0=(PATCH, PATCH),
        pixel_l0=(pixel, pixel),
    )


def make_patches(kind, rng):
    """Patches on the grid of the slide, or anywhere on it."""
    if kind == "lattice":
        x, y = (np.arange(side // PATCH) * PATCH for side in SLIDE_SIZE)
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        keep = np.sort(rng.choice(len(grid), N_PATCHES, replace=False))
        return grid[keep].astype(np.int64)
    return np.stack([rng.integers(0, side - PATCH, N_PATCHES) for side in SLIDE_SIZE], axis=1)


def seconds(function, *arguments):
    """Time of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def write_and_read(heatmap, folder):
    """A round through the file."""
    write_heatmap(folder / "heatmap.ome.tif", heatmap, mpp=(0.243, 0.243), name="benchmark")
    return read_heatmap(folder / "heatmap.ome.tif")


def peak_mb(coords, scores, pixel):
    """Peak of what one call allocates, MB."""
    tracemalloc.start()
    heatmap = our_heatmap(coords, scores, pixel)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6, heatmap.values.nbytes / 1e6


def measure(kind, pixel, rounds, rng, folder):
    """Compare once for equality, then time both in turn."""
    coords, scores = make_patches(kind, rng), rng.random(N_PATCHES).astype(np.float32)
    heatmap = our_heatmap(coords, scores, pixel)
    np.testing.assert_allclose(heatmap.values, loop_heatmap(coords, scores, pixel), atol=1e-6)
    back = write_and_read(heatmap, folder)
    np.testing.assert_array_equal(back.values, heatmap.values)
    loop, ours, file = [], [], []
    for _ in range(rounds):
        loop.append(seconds(loop_heatmap, coords, scores, pixel))
        ours.append(min(seconds(our_heatmap, coords, scores, pixel) for _ in range(3)))
        file.append(seconds(write_and_read, heatmap, folder))
    ratios = [a / b for a, b in zip(loop, ours, strict=True)]
    with_file = [a / (b + c) for a, b, c in zip(loop, ours, file, strict=True)]
    peak, output = peak_mb(coords, scores, pixel)
    return {
        "patches": kind,
        "downsample": pixel,
        "loop_s": statistics.median(loop),
        "ours_s": statistics.median(ours),
        "write_and_read_s": statistics.median(file),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "ratio_with_file": statistics.median(with_file),
        "peak_mb": peak,
        "heatmap_mb": output,
    }


def measure_command(rounds, folder):
    """The command, and the same work in a process that has imported everything."""
    import slides

    from tiling.store import PatchStore
    from wsi_pipeline.cli.app import main as program
    from wsi_pipeline.contracts import Scores
    from wsi_pipeline.inference.scores import write_scores
    from wsi_pipeline.layout import RunFolder, Unit
    from wsi_pipeline.run.state import mark_finished

    slide, run = slides.make_slide(folder / "s.svs", COMMAND_SIDE), RunFolder(folder / "run")
    store = ["--set", "tile.store=coords", "--set", f"tile.patch_px={PATCH}", "--quiet"]
    assert program(["tile", str(slide), "--out", str(run.path), *store]) == 0
    with PatchStore.open(run.store("s")) as tiles:
        values = np.random.default_rng(0).random(len(tiles)).astype(np.float32)
        attributes = {"slide_id": "s", "model": "m", "fingerprint": "f"}
        write_scores(run.scores("m", "s"), Scores(tiles.coords, values, attributes, {}))
    mark_finished(run, Unit("predict", "s", "m"), "f", [run.scores("m", "s")])
    asked = ["heatmap", str(run.path), "--overwrite", "--quiet"]
    command = [str(Path(sys.executable).with_name("wsi-pipeline")), *asked]
    process, cpu, stage, numpy = [], [], [], []
    for _ in range(rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process.append(seconds(subprocess.run, command))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        stage.append(seconds(program, asked))
        numpy.append(seconds(subprocess.run, [sys.executable, "-c", "import numpy"]))
    row = {"slide_px": COMMAND_SIDE, "patches": len(values)}
    for name, times in (("command_s", process), ("command_cpu_s", cpu), ("stage_s", stage)):
        row[name] = statistics.median(times[1:])
    return row | {"import_numpy_s": statistics.median(numpy[1:])}


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("lattice", "anywhere"):
            for pixel in (64, 256):
                rows.append(measure(kind, pixel, arguments.rounds, rng, Path(folder)))
                print(json.dumps(rows[-1]), flush=True)
        command = measure_command(arguments.rounds, Path(folder))
        print(json.dumps(command), flush=True)
    machine = {"cpu": platform.machine(), "python": platform.python_version()}
    machine["numpy"] = np.__version__
    settings = {"slide": SLIDE_SIZE, "patches": N_PATCHES, "patch_l0": PATCH}
    write_json(
        arguments.out,
        {
            "benchmark": "heatmap",
            "settings": settings,
            "rounds": arguments.rounds,
            "machine": machine,
        }
        | {"results": rows, "command": command},
    )


if __name__ == "__main__":
    main()
