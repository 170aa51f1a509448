"""`tile` with store: coords as a command, against a plain script of OpenSlide and OpenCV.

Both find tissue on a slide of 40,320 x 40,320 px and write where its patches are. The script takes
no more than that needs: the level nearest 8 µm per pixel, a threshold on the saturation, contours,
a grid, HDF5. Ours hashes the slide, excludes ink and dirt, measures the share of each tile, writes
a checked store, a QC picture and the records of a run. WSInfer's patch step is run where the
program `wsinfer` is on the path. Whole processes in turn, imports included, and their processor
time; `--cores 2` pins all sides. The script needs a Python with cv2, openslide and h5py
(`--peer-python`, by default this one); without these packages it is left out, with a sentence.

    python benchmarks/coords.py
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "coords.json"
SIDE, PATCH, MPP = 40_320, 512, 0.5

SCRIPT = """
import sys
import cv2, h5py, numpy as np, openslide

path, out, patch_px = sys.argv[1], sys.argv[2], int(sys.argv[3])
MPP, SATURATION, LEAST_AREA_UM2, LARGEST_HOLE_UM2 = 8.0, 20, 1e5, 1e5
with openslide.OpenSlide(path) as slide:
    mpp = float(slide.properties["openslide.mpp-x"])
    level = slide.get_best_level_for_downsample(MPP / mpp)
    scale = slide.level_downsamples[level]
    rgb = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
    width, height = slide.dimensions
saturation = cv2.medianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], 7)
_, mask = cv2.threshold(saturation, SATURATION, 255, cv2.THRESH_BINARY)
mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
pixel_um2 = (mpp * scale) ** 2
tissue = np.zeros_like(mask)
for contour, (_, _, _, parent) in zip(contours, tree[0]):
    area = cv2.contourArea(contour) * pixel_um2
    if parent < 0 and area >= LEAST_AREA_UM2:
        cv2.drawContours(tissue, [contour], -1, 1, cv2.FILLED)
for contour, (_, _, _, parent) in zip(contours, tree[0]):
    if parent >= 0 and cv2.contourArea(contour) * pixel_um2 > LARGEST_HOLE_UM2:
        cv2.drawContours(tissue, [contour], -1, 0, cv2.FILLED)
x, y = (np.arange(0, side - patch_px + 1, patch_px) for side in (width, height))
coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
centre = ((coords + patch_px / 2) / scale).astype(int).clip(0, np.array(tissue.shape[::-1]) - 1)
coords = coords[tissue[centre[:, 1], centre[:, 0]] > 0]
with h5py.File(out, "w") as file:
    array = file.create_dataset("coords", data=coords)
    array.attrs["patch_size"], array.attrs["patch_level"] = patch_px, 0
print(len(coords))
"""


def run(command):
    """Run one process; its seconds and processor seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": seconds, "cpu_s": cpu}


def our_command(slide, folder):
    """`tile`, as a user types it."""
    program = Path(sys.executable).with_name("wsi-pipeline")
    settings = [f"tile.patch_px={PATCH}", f"tile.target_mpp={MPP}", "tile.store=coords"]
    options = [part for setting in settings for part in ("--set", setting)]
    return [program, "tile", slide, "--out", folder / "run", "--quiet", *options]


def has_packages(python):
    """Whether a Python has what the script imports."""
    done = subprocess.run([python, "-c", "import cv2, h5py, openslide"], capture_output=True)
    return done.returncode == 0


def list_sides(slide, peer_python):
    """What is compared: a function from an empty folder to a command, by name."""
    sides = {"ours": lambda folder: our_command(slide, folder)}
    if has_packages(peer_python):
        sides["script"] = lambda folder: [
            peer_python, "-c", SCRIPT, slide, folder / "coords.h5", PATCH,
        ]  # fmt: skip
    else:
        print(f"{peer_python} lacks cv2, h5py or openslide: without the script of OpenCV")
    if shutil.which("wsinfer"):
        sides["wsinfer"] = lambda folder: [
            "wsinfer", "patch", "--source", slide.parent, "--save-dir", folder,
            "--patch-size", PATCH, "--patch-spacing", MPP,
        ]  # fmt: skip
    else:
        print("wsinfer is not installed: without its patch step")
    return sides


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    import slides

    from tiling.files import write_json

    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slides").mkdir()
        slide = arguments.slide or slides.make_slide(folder / "slides/bench.svs", SIDE)
        time.sleep(3)  # a slide that has just been written is hashed twice
        sides = list_sides(slide.absolute(), arguments.peer_python)
        for number in range(arguments.rounds + 1):
            row = {}
            for side, command in sides.items():
                scratch = folder / f"{number}-{side}"
                scratch.mkdir()
                row[side] = run(command(scratch))
            if number:  # the first warms up
                rows.append(row)
                print(json.dumps(row), flush=True)
    result = {
        side: {key: statistics.median(row[side][key] for row in rows) for key in ("s", "cpu_s")}
        for side in sides
    }
    for side in set(sides) - {"ours"}:
        for key in ("s", "cpu_s"):
            ratios = sorted(row[side][key] / row["ours"][key] for row in rows)
            result[side][f"ratio_{key}"] = statistics.median(ratios)
            result[side][f"ratio_{key}_spread"] = [ratios[0], ratios[-1]]
    print(json.dumps(result, indent=1))
    machine = {"cpu": platform.machine(), "python": platform.python_version()}
    machine["cores"] = len(os.sched_getaffinity(0))
    settings = {"side_px": SIDE, "patch_px": PATCH, "rounds": arguments.rounds}
    write_json(
        arguments.out,
        {"benchmark": "coords", "settings": settings, "machine": machine, "results": result},
    )


if __name__ == "__main__":
    main()
