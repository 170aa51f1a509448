"""Overhead of prediction over the forward pass.

Three comparisons, each in one run and interleaved:

- ``engine``: `predict_store` on a patch store, against the bare forward pass of the same model on
  batches that already lie in memory as floats: same batch size, precision and layout. VGG16 of the
  lecture at 512 px. Counted on our side: opening nothing, but reading, conversion, forward pass,
  scores. The comparison of bf16 with fp32 on the first patches is left out of both: it costs eight
  patches a slide, whatever the slide's size.
- ``plain``: the same, against a plain loop as tools have it: one OpenSlide read per patch, float
  conversion, fp32 in torch's default layout, no reading ahead.
- ``overhead``: a model that does next to nothing, straight from a slide file (``store: coords``):
  time per patch beyond reading the same patches and doing nothing with them, all threads pinned to
  one core (Linux).

    python benchmarks/predict.py
    python benchmarks/predict.py --device cuda:0 --precision bf16 --patches 4096

On a GPU, ``matmul`` is the card's own large bf16 matrix product, measured in the same call, and
``share_of_matmul`` the share of it that the engine reaches with 160 GFLOP per patch.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide
import tifffile
import torch
from torch import nn

from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.files import write_json
from tiling.store import PatchStore
from tiling.threads import map_in_threads
from wsi_pipeline.cohort.data import read_batch, to_unit_range
from wsi_pipeline.config.devices import compute_in, place_model, resolve_device, resolve_precision
from wsi_pipeline.inference import automatic_batch_size
from wsi_pipeline.inference.engine import score_rows
from wsi_pipeline.inference.forward import Forward
from wsi_pipeline.inference.journal import Journal
from wsi_pipeline.models import build_model

RESULT = Path(__file__).parent / "results" / "predict.json"
PATCH_PX = 512
MPP = 0.5
FLOP_PER_PATCH = 160e9  # VGG16's trunk at 512 px


class Trivial(nn.Module):
    """Mean of a corner: a model that costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        """(B, 3, H, W) -> (B,)."""
        return self.weight * x[:, 0, :8, :8].mean((1, 2))


def make_slide(path, n_columns, n_rows):
    """A tiled JPEG slide of tissue-like noise, one level per factor of four."""
    rng = np.random.default_rng(0)
    size = (n_rows * PATCH_PX, n_columns * PATCH_PX)
    coarse = rng.integers(90, 230, (size[0] // 16, size[1] // 16, 3))
    pixels = np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)
    pixels = np.clip(pixels + rng.integers(-12, 12, pixels.shape), 0, 255).astype(np.uint8)
    pixels[..., 1] //= 2  # pink, as tissue is
    with tifffile.TiffWriter(path) as tiff:
        for level in (1, 4):
            tiff.write(
                pixels[::level, ::level],
                tile=(240, 240),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": 80},
                resolution=(1e4 / MPP / level, 1e4 / MPP / level),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 1),
                metadata=None,
            )


def cut(slide, store, *, kind):
    """Tile a slide without looking for tissue."""
    config = TileConfig(
        target_mpp=MPP, patch_px=PATCH_PX, store=kind, tissue=TissueConfig(min_fraction=0.0)
    )
    tile_slide(slide, store, slide_id=slide.stem, config=config, mpp=MPP)
    return PatchStore.open(store, slide_path=slide)


def engine(model, store, rows, settings):
    """Score rows as `predict` does."""
    forward = Forward(model, limit=settings["batch"], **settings["how"])
    scores, _, _ = score_rows(
        forward, store, rows, readers=settings["readers"], journal=Journal(None, key=""),
        on_progress=None,
    )  # fmt: skip
    return scores


def bare(model, batches, how):
    """The forward pass and nothing else; the device is waited for once, at the end."""
    with torch.inference_mode(), compute_in(how["precision"], how["device"]):
        parts = [model(x).float().sigmoid() for x in batches]
    return torch.cat(parts).cpu().numpy()


def plain(model, slide_path, coords):
    """One patch after the other: OpenSlide, PIL, float, fp32, torch's default layout."""
    scores = []
    with openslide.OpenSlide(str(slide_path)) as slide, torch.inference_mode():
        for x, y in coords.tolist():
            patch = np.array(slide.read_region((x, y), 0, (PATCH_PX, PATCH_PX)).convert("RGB"))
            tensor = torch.from_numpy(patch).permute(2, 0, 1).contiguous()[None].float() / 255
            scores.append(model(tensor).float().sigmoid().numpy())
    return np.concatenate(scores)


def read_only(store, rows, settings):
    """Read all patches as the engine does, and drop them."""
    size = settings["batch"]
    todo = [rows[start : start + size] for start in range(0, len(rows), size)]
    for _ in map_in_threads(lambda r: read_batch(store, r), todo, threads=settings["readers"]):
        pass


def timed(function, *arguments):
    """Seconds of one call, and what it returned."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def spread(values):
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure_engine(store, settings, rounds):
    """Patches per second of the engine as a share of the bare forward pass's."""
    torch.manual_seed(0)
    model = place_model(build_model("vgg16"), settings["how"]["device"]).eval()
    rows = np.arange(len(store), dtype=np.int64)
    size, device = settings["batch"], settings["how"]["device"]
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    held = chunks[: max(1, 2**31 // (size * PATCH_PX**2 * 12))]  # at most 2 GiB of floats
    ready = [to_unit_range(read_batch(store, chunk).pixels, device) for chunk in held]
    batches = [ready[number % len(ready)] for number in range(len(chunks))]
    engine(model, store, rows[:size], settings)  # warm up
    ratios, rates = [], []
    for _ in range(rounds):
        ours_s, ours = timed(engine, model, store, rows, settings)
        bare_s, alone = timed(bare, model, batches, settings["how"])
        n_same = len(held) * size
        np.testing.assert_allclose(ours[:n_same], alone[:n_same], atol=1e-6)
        ratios.append(bare_s / ours_s)
        rates.append(len(rows) / ours_s)
    return {"share_of_bare": spread(ratios), "patches_per_s": spread(rates)}


def measure_plain(store, slide_path, settings, rounds, n_patches):
    """How many times as fast as the plain loop in fp32."""
    torch.manual_seed(0)
    ours_model, plain_model = build_model("vgg16").eval(), None
    torch.manual_seed(0)
    plain_model = build_model("vgg16").eval()
    rows = np.arange(n_patches, dtype=np.int64)
    engine(ours_model, store, rows[: settings["batch"]], settings)
    plain(plain_model, slide_path, store.coords[:1])
    ratios, differences = [], []
    for _ in range(rounds):
        ours_s, ours = timed(engine, ours_model, store, rows, settings)
        plain_s, alone = timed(plain, plain_model, slide_path, store.coords[rows])
        ratios.append(plain_s / ours_s)
        differences.append(float(np.abs(ours - alone).max()))
    return {"times_plain_fp32": spread(ratios), "largest_difference": max(differences)}


def measure_overhead(store, settings, rounds):
    """Milliseconds per patch beyond reading, with a model that does nothing."""
    rows = np.arange(len(store), dtype=np.int64)
    model = Trivial()
    read_only(store, rows, settings)
    extra, reading = [], []
    for _ in range(rounds):
        whole_s, scores = timed(engine, model, store, rows, settings)
        read_s, _ = timed(read_only, store, rows, settings)
        assert np.isfinite(scores).all()
        extra.append(1e3 * (whole_s - read_s) / len(rows))
        reading.append(1e3 * read_s / len(rows))
    return {"overhead_ms_per_patch": spread(extra), "reading_ms_per_patch": spread(reading)}


def pin_threads(cores):
    """Keep all threads of this process on some cores."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


@contextlib.contextmanager
def one_core():
    """Keep this process, with all threads that it starts, on one of its cores."""
    before = os.sched_getaffinity(0)
    pin_threads({max(before)})
    try:
        yield
    finally:
        pin_threads(before)


def measure_matmul(device):
    """TFLOP/s of the card's own bf16 product of 8192 x 8192 matrices."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize(device)
    return 20 * 2 * 8192**3 / (time.perf_counter() - start) / 1e12


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=24, help="of 512 px, for VGG16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    device = resolve_device(asked.device)
    how = {"device": device, "precision": resolve_precision(asked.precision, device)}
    settings = {"how": how, "batch": automatic_batch_size(PATCH_PX, device)}
    settings["readers"] = asked.readers
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tif"
        columns = max(4, round(asked.patches**0.5))
        make_slide(slide, columns, -(-asked.patches // columns))
        stored = cut(slide, Path(folder) / "stored.zarr", kind="patches")
        straight = cut(slide, Path(folder) / "straight.zarr", kind="coords")
        results["engine"] = measure_engine(stored, settings, asked.rounds)
        print(json.dumps(results["engine"]), flush=True)
        results["engine_from_slide"] = measure_engine(straight, settings, asked.rounds)
        print(json.dumps(results["engine_from_slide"]), flush=True)
        if device.type == "cuda":
            peak = measure_matmul(device)
            reached = results["engine_from_slide"]["patches_per_s"]["median"] * FLOP_PER_PATCH
            results["matmul"] = {"tflops": peak, "share_of_matmul": reached / 1e12 / peak}
        else:
            n = min(len(stored), 12)
            results["plain"] = measure_plain(straight, slide, settings, asked.rounds, n)
            print(json.dumps(results["plain"]), flush=True)
            torch.set_num_threads(1)
            one = settings | {"how": how | {"precision": "fp32"}, "readers": 1}
            large = Path(folder) / "large.tif"
            make_slide(large, 16, 16)
            straight = cut(large, Path(folder) / "large.zarr", kind="coords")
            with one_core():
                results["overhead"] = measure_overhead(straight, one, asked.rounds)
            print(json.dumps(results["overhead"]), flush=True)
    machine = {"cpu": platform.machine(), "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write_json(
        asked.out,
        {
            "benchmark": "predict",
            "patch_px": PATCH_PX,
            "batch": settings["batch"],
            "rounds": asked.rounds,
        }
        | {"precision": how["precision"], "machine": machine, "peak_rss_gib": peak}
        | {"results": results},
    )


if __name__ == "__main__":
    main()
