"""What `plan` costs against `tile`, which it predicts: many tiny slides, a few large ones.

Slides are copies of a few files with other bytes at their end, so that each has a digest of its
own. Both commands run as processes with the same number of workers (seconds from start to end,
starting processes included); then every slide is planned and tiled in turn in one process, whose
processor seconds depend less on what else a machine does. The aim is a tenth.

    python benchmarks/plan_cost.py
    python benchmarks/plan_cost.py --tiny 2000 --large 0
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from tiling.build import tile_slide
from tiling.files import write_json
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.planning.pictures import choose_drawn
from wsi_pipeline.planning.plan import PlanTask, plan_slide
from wsi_pipeline.run.slide_contents import tile_inputs
from wsi_pipeline.stages.tile import list_entries

RESULT = Path(__file__).parent / "results" / "plan_cost.json"
COMMAND = str(Path(sys.executable).with_name("wsi-pipeline"))
TINY_PX, LARGE_PX = 300, 20_160
TURNS = {"tiny": 64, "large": 4}  # slides that are planned and tiled in turn


def draw_tiny(path, seed, size=(TINY_PX, TINY_PX)):
    """Write a slide of one pink, speckled ellipse on glass, two levels; returns its bytes."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = (x / width - 0.5) ** 2 + (y / height - 0.5) ** 2 < 0.38**2
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[inside] = np.array([200, 110, 160]) + rng.integers(-25, 26, (int(inside.sum()), 1))
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 µm per px
    with tifffile.TiffWriter(path) as tif:
        for level, step in enumerate((1, 2)):
            tif.write(
                np.ascontiguousarray(pixels[::step, ::step]),
                tile=(64, 64),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(level > 0),
                metadata=None,
                **resolution,
            )
    return path.read_bytes()


def draw_cohort(folder, n_slides, contents, suffix):
    """Write slides with the contents in turn, each with a digest of its own, and their manifest.

    Half are labelled tumour; 6 of 10 are in train, 2 in val, 2 in test.
    """
    folder.mkdir(parents=True)
    rows = ["slide,patient,label,split\n"]
    for number in range(n_slides):
        name, split = f"s{number:05}", ["train"] * 6 + ["val"] * 2 + ["test"] * 2
        content = contents[number % len(contents)]
        (folder / f"{name}{suffix}").write_bytes(content + number.to_bytes(8, "little"))
        rows.append(f"{name}{suffix},{name},{number % 2},{split[number % 10]}\n")
    (folder / "slides.csv").write_text("".join(rows), encoding="utf-8")
    return folder / "slides.csv"


def draw_tiny_cohort(folder, n_slides):
    """Write many tiny slides; returns their manifest."""
    folder.mkdir(parents=True)
    contents = [draw_tiny(folder / "drawn.tif", seed) for seed in range(8)]
    return draw_cohort(folder / "slides", n_slides, contents, ".tif")


def draw_large_cohort(folder, n_slides):
    """Write a few slides of 400 million pixels; returns their manifest."""
    from slides import make_slide

    folder.mkdir(parents=True)
    content = make_slide(folder / "drawn.svs", LARGE_PX).read_bytes()
    return draw_cohort(folder / "slides", n_slides, [content], ".svs")


def time_command(*arguments):
    """Run a command; its seconds from start to end."""
    start = time.perf_counter()
    subprocess.run([COMMAND, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare_in_turn(config, n_slides, scratch):
    """Plan and tile slides in turn: processor seconds of each, per slide of the whole cohort."""
    entries = list_entries(config)
    chosen = entries[:: max(1, len(entries) // n_slides)]
    share = len(choose_drawn(len(entries))) / len(entries)  # whose pictures a plan draws
    plain, drawing, tiling = [], [], []
    for entry in chosen:
        task = PlanTask(entry, entry.tile_config(config.tile), None)
        for draw, seconds in ((False, plain), (True, drawing)):
            start = time.process_time()
            assert not plan_slide(replace(task, draw=draw)).plan.problem
            seconds.append(time.process_time() - start)
        start = time.process_time()
        tile_slide(
            entry.path,
            scratch / "store.zarr",
            **tile_inputs(entry, task.config),
            qc_path=scratch / "picture.png",
        )
        tiling.append(time.process_time() - start)
    means = [statistics.fmean(seconds[1:]) for seconds in (plain, drawing, tiling)]
    planned = means[0] + share * (means[1] - means[0])
    return {"plan_cpu_s": planned, "tile_cpu_s": means[2], "cpu_ratio": planned / means[2]}


def compare(source, kind, store, patch_px, workers, folder):
    """Compare both commands on a cohort."""
    folder.mkdir()
    tile = f"tile: {{patch_px: {patch_px}, target_mpp: 0.5, store: {store}}}\n"
    text = f"input: {source}\nout: {folder / 'run'}\nstages: [tile]\n{tile}"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    words = (folder / "config.yaml", "--quiet", "--workers", workers)
    plan_s, tile_s = time_command("plan", *words), time_command("run", *words)
    found = {
        "slides": kind,
        "number": len(list_entries(read_config(folder / "config.yaml"))),
        "store": store,
        "plan_s": plan_s,
        "tile_s": tile_s,
        "ratio": plan_s / tile_s,
    }
    return found | compare_in_turn(read_config(folder / "config.yaml"), TURNS[kind], folder)


def main():
    """Draw, measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", type=int, default=1000, help=f"slides of {TINY_PX} px")
    parser.add_argument("--large", type=int, default=4, help=f"slides of {LARGE_PX} px")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind, n_slides, draw, patch_px in (
            ("tiny", arguments.tiny, draw_tiny_cohort, 64),
            ("large", arguments.large, draw_large_cohort, 512),
        ):
            if not n_slides:
                continue
            source = draw(Path(scratch) / kind, n_slides)
            time.sleep(1)  # what has just been written is hashed twice
            for store in ("patches", "coords"):
                folder = Path(scratch) / f"{kind}_{store}"
                results.append(compare(source, kind, store, patch_px, arguments.workers, folder))
                print(json.dumps(results[-1], indent=1), flush=True)
    write_json(arguments.out, {"benchmark": "plan_cost", "results": results})


if __name__ == "__main__":
    main()
