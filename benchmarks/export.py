"""A slide of 350,000 overlapping patches in every format, and its heatmap file.

Counted: from scores in memory to the file on disk, the heatmap's making included. The peak is that
of the whole process so far, imports and scores included.

    python benchmarks/export.py
"""

import argparse
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from tiling.contracts import SlideInfo, TileGeometry
from tiling.files import write_json
from wsi_pipeline.config.settings import ExportConfig
from wsi_pipeline.contracts import Scores
from wsi_pipeline.exports import FORMATS, load_format
from wsi_pipeline.exports.base import ExportJob, ExportSlide
from wsi_pipeline.heatmaps.files import write_heatmap
from wsi_pipeline.inference.scores import clam_attributes

SLIDE_SIZE, MPP = (105_185, 221_772), 0.2527
N_PATCHES, PATCH_L0, STRIDE_L0 = 350_000, 443, 221
RESULT = Path(__file__).parent / "results" / "export.json"


def make_slide() -> ExportSlide:
    """Patches where a smooth random field is highest, as tissue lies; scores in clusters."""
    info = SlideInfo(
        "big",
        "big.svs",
        "aperio",
        SLIDE_SIZE,
        (MPP, MPP),
        (SLIDE_SIZE,),
        (1.0,),
        None,
        40.0,
        "f" * 16,
    )
    sides = (PATCH_L0, PATCH_L0, STRIDE_L0, STRIDE_L0)
    geometry = TileGeometry(224, 112, 0.5, *sides, (0.5 / MPP, 0.5 / MPP))
    x, y = (np.arange(0, side - PATCH_L0, STRIDE_L0) for side in SLIDE_SIZE)
    fields = np.random.default_rng(0).random((2, len(y), len(x)))
    tissue, hot = gaussian_filter(fields[0], 6).ravel(), gaussian_filter(fields[1], 1).ravel()
    chosen = np.sort(np.argsort(tissue)[-N_PATCHES:])
    coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)[chosen].astype(np.int64)
    values = hot[chosen]
    values = ((values - values.min()) / np.ptp(values)).astype(np.float32)
    values[::1000] = np.nan
    return ExportSlide(
        info, geometry, "model", Scores(coords, values, {}, clam_attributes(info, geometry))
    )


def measure(slide: ExportSlide, name: str, folder: Path, **settings: str) -> dict[str, float | str]:
    """Write one file; return its time, size, and the peak memory so far."""
    job = ExportJob(slide, ExportConfig(overlap="mean", **settings))
    start = time.perf_counter()
    if name == "heatmap":
        path, line = folder / "big.ome.tif", f"{job.heatmap.values.shape}"
        write_heatmap(path, job.heatmap, mpp=slide.info.mpp, name="big")
    else:
        (path,), line = load_format(name)(job, folder)
    seconds = time.perf_counter() - start
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return {
        "what": " ".join([name, *settings.values()]),
        "seconds": round(seconds, 2),
        "MiB": round(sum(p.stat().st_size for p in files) / 2**20, 1),
        "peak_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "line": line,
    }


def main() -> None:
    """Measure, print, keep."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    slide = make_slide()
    jobs: list[tuple[str, dict[str, str]]] = [("heatmap", {})]
    jobs += [(name, {}) for name in FORMATS if name != "qupath"]
    jobs += [
        ("qupath", {"qupath": "regions", "compression": "gzip"}),
        ("qupath", {"qupath": "tiles", "compression": "gzip"}),
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(slide, name, Path(folder), **settings) for name, settings in jobs]
    for row in rows:
        print(*row.values(), sep="  ")
    write_json(RESULT, {"machine": platform.machine(), "patches": N_PATCHES, "rows": rows})


if __name__ == "__main__":
    main()
