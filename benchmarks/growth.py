"""`evaluate`, `report` and `froc` as processes: how time, memory and files grow with slides.

Draws run folders of N slides as `tile`, `predict` and `heatmap` leave them (patch stores without
pixels, score files, outlines, one picture of a heatmap copied for every slide) and runs `evaluate`
and `report` on each; then `froc` on a million detections in 129 CSV files. Every command is a
process of its own: seconds from start to end, processor seconds, and peak memory of the process.

Not covered: crops of the error gallery and explanations (there are no slide files), training
history, several models in one report, and reading the drawn files from a cold disk.

python benchmarks/growth.py [--slides 10 100 1000] [--large] [--keep FOLDER]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from tiling.contracts import SlideInfo, TileGeometry
from tiling.files import write_json
from tiling.store_files import TileTable, finish_store, write_table
from wsi_pipeline.cohort.manifest import write_manifest
from wsi_pipeline.contracts import Heatmap, Scores, SlideEntry
from wsi_pipeline.csv_files import write_tables
from wsi_pipeline.heatmaps.overlays import draw_overlay
from wsi_pipeline.inference.scores import write_scores
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.state import mark_finished

RESULT = Path(__file__).parent / "results" / "growth.json"
COMMAND = str(Path(sys.executable).with_name("wsi-pipeline"))
MODEL = "drawn"
N_LARGE, PATCHES_LARGE = 698, 7_878_675  # the lecture's cohort
SIDE, PATCH_L0 = 240, 256  # patches along a slide's side; level-0 px of a patch
MPP = 0.25
SIZE = (SIDE * PATCH_L0, SIDE * PATCH_L0)
GEOMETRY = TileGeometry(
    PATCH_L0, PATCH_L0 // 2, MPP, PATCH_L0, PATCH_L0, PATCH_L0, PATCH_L0, (1.0, 1.0)
)
N_DETECTIONS, N_FROC_SLIDES = 1_000_000, 129


# ------------------------------------------------------------ a run folder


def draw_run(folder: Path, n_slides: int, n_patches: int) -> None:
    """Draw a run of `n_slides` in test and a tenth of that in val, `n_patches` on those of test."""
    run = RunFolder(folder)
    (run.path / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(n_slides)
    n_val = max(2, n_slides // 10)
    counts = np.full(n_slides, n_patches // n_slides)
    counts[: n_patches % n_slides] += 1
    picture = draw_picture(folder, rng)
    entries = []
    for number, count in enumerate([*counts.tolist(), *[n_patches // n_slides] * n_val]):
        split = "test" if number < n_slides else "val"
        entries.append(draw_slide(run, f"{split}_{number:04d}", split, number % 5 < 2, count, rng))
        overlay = run.overlay(MODEL, entries[-1].slide_id)
        overlay.parent.mkdir(parents=True, exist_ok=True)
        overlay.write_bytes(picture)
        mark_finished(run, Unit("heatmap", entries[-1].slide_id, MODEL), "drawn", [overlay])
    write_manifest(run.manifest, entries)


def draw_slide(run, slide_id, split, tumour, n_patches, rng) -> SlideEntry:
    """Draw the patch store, outlines and scores of one slide."""
    coords = draw_tissue(n_patches, rng)
    lesions = draw_lesions(rng) if tumour else []
    centre = coords + PATCH_L0 / 2
    meets = [np.hypot(*(centre - (x, y)).T) < r + PATCH_L0 / 4 for x, y, r in lesions]
    pairs = [
        np.column_stack([rows, np.full(rows.size, i)])
        for i, m in enumerate(meets)
        for rows in [np.flatnonzero(m)]
    ]
    label = np.any([np.zeros(n_patches, bool), *meets], axis=0).astype(np.int8)
    info = SlideInfo(
        slide_id,
        f"{slide_id}.tif",
        "generic-tiff",
        SIZE,
        (MPP, MPP),
        (SIZE,),
        (1.0,),
        None,
        None,
        slide_id,
    )
    store = run.store(slide_id)
    store.parent.mkdir(exist_ok=True)
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    ones = np.ones(n_patches, np.float32)
    nothing = np.zeros(n_patches, bool)
    table = TileTable(coords, ones, label, label.astype(np.float32), nothing, pairs)
    write_table(store, table)
    finish_store(
        store,
        {
            "slide": asdict(info),
            "tiling": {"store": "coords", **asdict(GEOMETRY)},
            "fingerprint": slide_id,
            "slide_label": int(tumour),
            "lesions": [{"id": str(i + 1)} for i in range(len(lesions))],
        },
        table,
    )
    mark_finished(run, Unit("tile", slide_id), "drawn", [store])
    heat = rng.beta(1, 9, n_patches)
    heat[label == 1] = rng.beta(6, 2, int(label.sum()))
    scores = run.scores(MODEL, slide_id)
    attributes = {
        "slide_id": slide_id,
        "model": MODEL,
        "fingerprint": slide_id,
        "checkpoint": "drawn",
    }
    attributes["trained_on"] = {
        "train_slides": [],
        "train_patients": [],
        "val_slides": [],
        "val_patients": [],
    }
    scores.parent.mkdir(parents=True, exist_ok=True)
    write_scores(
        scores, Scores(coords, heat.astype(np.float32), attributes, {"patch_size": PATCH_L0})
    )
    mark_finished(run, Unit("predict", slide_id, MODEL), "drawn", [scores])
    entry = SlideEntry(
        slide_id, run.path / f"{slide_id}.tif", slide_id, int(tumour), None, split, None
    )
    if not lesions:
        return entry
    outlines = run.path / "annotations" / f"{slide_id}.geojson"
    outlines.write_text(json.dumps(as_geojson(lesions)), encoding="utf-8")
    return replace(entry, annotation=outlines)


def draw_tissue(n_patches, rng):
    """Place patches in a blob: (N, 2) level-0 px, row by row."""
    y, x = np.mgrid[:SIDE, :SIDE]
    centre, stretch = rng.uniform(0.4, 0.6, 2) * SIDE, rng.uniform(0.7, 1.4)
    far = (x - centre[0]) ** 2 * stretch + (y - centre[1]) ** 2 / stretch
    cells = np.sort(np.argpartition(far.ravel(), n_patches - 1)[:n_patches])
    return np.column_stack([cells % SIDE, cells // SIDE]).astype(np.int64) * PATCH_L0


def draw_lesions(rng):
    """Draw one to eight circles in the middle of the slide: x, y, radius in level-0 px."""
    n = int(rng.integers(1, 9))
    places = rng.uniform(0.35, 0.65, (n, 2)) * SIZE
    return [
        (*xy, r) for xy, r in zip(places.tolist(), rng.uniform(600, 2500, n).tolist(), strict=True)
    ]


def as_geojson(lesions):
    """Outline circles as QuPath writes annotations: 200 vertices each."""
    angle = np.linspace(0, 2 * np.pi, 201)
    features = []
    for x, y, r in lesions:
        ring = np.column_stack([x + r * np.cos(angle), y + r * np.sin(angle)])
        ring[-1] = ring[0]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
                "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def draw_picture(folder, rng) -> bytes:
    """Draw a heatmap's picture as the stage heatmap does, on a thumbnail with grain."""
    cloud = gaussian_filter(rng.random((SIDE, SIDE)), 12)
    cloud = (cloud - cloud.min()) / np.ptp(cloud)
    grain = rng.normal(0, 12, (960, 960, 3))
    tissue = np.asarray(Image.fromarray(np.uint8(cloud * 255)).resize((960, 960)))[..., None]
    thumbnail = np.clip(np.where(tissue > 100, (200, 130, 180), (242, 240, 243)) + grain, 0, 255)
    values = np.where(cloud > 0.4, cloud, np.nan).astype(np.float32)
    path = folder / "picture.png"
    draw_overlay(
        path,
        Heatmap(values, (PATCH_L0, PATCH_L0), SIZE),
        thumbnail.astype(np.uint8),
        title="drawn",
        mpp=(MPP, MPP),
        outlines=[],
    )
    data = path.read_bytes()
    path.unlink()
    return data


# ------------------------------------------------------------ froc


def draw_detections(folder: Path) -> list[str]:
    """Draw detections, outlines and a slide list; returns the command that reads them."""
    rng = np.random.default_rng(0)
    detections, reference = folder / "detections", folder / "reference"
    for path in (detections, reference):
        path.mkdir(parents=True)
    slides = []
    counts = np.full(N_FROC_SLIDES, N_DETECTIONS // N_FROC_SLIDES)
    counts[: N_DETECTIONS % N_FROC_SLIDES] += 1
    for number, count in enumerate(counts.tolist()):
        name, tumour = f"test_{number:03d}", number % 5 < 2
        x, y = (rng.integers(0, side, count) for side in SIZE)
        table = [rng.random(count), x, y]
        write_tables(detections / f"{name}.csv", ("prob", "x", "y"), [table])
        if tumour:
            outlines = json.dumps(as_geojson(draw_lesions(rng)))
            (reference / f"{name}.geojson").write_text(outlines, encoding="utf-8")
        slides.append(f"{name},{int(tumour)}\n")
    (folder / "slides.csv").write_text("slide_id,label\n" + "".join(slides), encoding="utf-8")
    options = {
        "--detections": detections,
        "--reference": reference,
        "--slides": folder / "slides.csv",
    }
    words = [str(word) for pair in options.items() for word in pair]
    return ["froc", *words, "--mpp", str(MPP), "--out", str(folder / "out")]


# ------------------------------------------------------------ measure


# A small process starts the command and waits for it: the peak memory that the system reports of a
# process includes that of the one it was forked from.
WAIT = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, cpu, usage.ru_maxrss / 1024]))
"""


def measure(arguments) -> dict[str, float]:
    """Run a command; its seconds, processor seconds and peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WAIT, COMMAND, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    code, seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    if code:
        raise SystemExit(f"{' '.join(arguments)} failed with exit code {code}")
    return {"s": round(seconds, 2), "cpu_s": round(cpu, 2), "peak_mib": round(peak)}


def mib(path: Path) -> float:
    """MiB of a file, or of the files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return round(sum(f.stat().st_size for f in files if f.is_file()) / 2**20, 2)


def measure_run(folder: Path, n_slides: int, n_patches: int) -> dict[str, object]:
    """Draw a run, evaluate it and report on it."""
    draw_run(folder, n_slides, n_patches)
    out = folder / "evaluation" / MODEL
    return {
        "slides": n_slides,
        "patches": n_patches,
        "evaluate": measure(["evaluate", str(folder), "--quiet"]),
        "report": measure(["report", str(folder), "--quiet"]),
        "metrics_json_mib": mib(out / "metrics.json"),
        "patches_csv_mib": mib(out / "patches.csv"),
        "evaluation_mib": mib(out),
        "report_html_mib": mib(folder / "report.html"),
        "figures_mib": mib(folder / "figures"),
    }


def main():
    """Draw, measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--slides", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--patches", type=int, default=2000, help="of a slide")
    parser.add_argument(
        "--large",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also {N_LARGE} slides with {PATCHES_LARGE:,} patches",
    )
    parser.add_argument(
        "--froc",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also froc with a million detections",
    )
    parser.add_argument("--keep", type=Path, help="draw in this new folder, and leave it there")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    cases = [(n, n * arguments.patches) for n in arguments.slides]
    cases += [(N_LARGE, PATCHES_LARGE)] if arguments.large else []
    result = {"benchmark": "growth", "python": platform.python_version(), "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        for n_slides, n_patches in cases:
            result["runs"].append(measure_run(folder / f"run_{n_patches}", n_slides, n_patches))
            print(json.dumps(result["runs"][-1], indent=1), flush=True)
        if arguments.froc:
            result["froc"] = measure([*draw_detections(folder / "froc"), "--quiet"])
            print(json.dumps(result["froc"], indent=1))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
