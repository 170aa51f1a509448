"""The parts of `make gpu`: each checks or measures one thing and writes its rows as JSON.

Started by `run.py`, one process each. A part raises an error if a check fails; earlier measurements
are kept. Times on the GPU include synchronisation.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import tomllib
import traceback
from importlib import metadata
from pathlib import Path

import numpy as np
from measuring import Report, require, synchronize, timed
from variants import variants

ROOT = Path(__file__).parents[2]
TARGET_SHARE = 0.5  # of the card's bf16 product, from the slide file to scores
TARGET_DENSE = 50  # times one CPU core
TILE_PX = 240  # of the slide file, as Aperio writes them


# ---------------------------------------------------------------- packages


def packages(report):
    """Versions: PyTorch, the card, and every dependency of the project."""
    import torch
    from packaging.requirements import Requirement

    on_gpu = report.device.type == "cuda"
    card = torch.cuda.get_device_name(report.device) if on_gpu else platform.machine() + " CPU"
    report.more["card"] = card
    report.row("Python, PyTorch", f"{platform.python_version()}, {torch.__version__}")
    report.row("card", card)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wrong = []
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["torch"], *extras["cluster"]):
        needed = Requirement(line)
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            found = None
        if found is None or not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{line} (installed: {found or 'no'})")
    if on_gpu:
        total = torch.cuda.get_device_properties(report.device).total_memory
        report.row("memory", f"{total / 2**30:.0f} GiB")
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        report.row("bf16 in hardware", "yes" if bf16 else "no")
    require(not wrong, f"missing or too old: {', '.join(wrong)}")
    import wsi_pipeline.cli.app  # noqa: F401  whether it imports is what is asked


# ---------------------------------------------------------------- predict


def make_slide(path, side, mpp=0.5):
    """A tiled JPEG slide of pink speckle, 0.3 bytes per pixel; its tiles are encoded once each."""
    import imagecodecs
    import tifffile

    random = np.random.default_rng(0)
    encoded = []
    for _ in range(16):
        coarse = np.kron(random.integers(-60, 40, (TILE_PX // 8,) * 2), np.ones((8, 8), int))
        grain = random.normal(0, 8, (TILE_PX, TILE_PX))
        pixels = np.array([205, 120, 170]) + (coarse + grain)[..., None]
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        encoded.append(
            imagecodecs.jpeg8_encode(
                pixels, level=80, colorspace="rgb", outcolorspace="ycbcr", subsampling=(2, 2)
            )
        )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in (1, 4, 16):
            size = side // level
            count = (-(-size // TILE_PX)) ** 2
            tiff.write(
                (encoded[k] for k in random.integers(0, len(encoded), count)),
                shape=(size, size, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
                photometric="ycbcr", subsampling=(2, 2), compression="jpeg",
                resolution=(1e4 / mpp / level,) * 2, resolutionunit="CENTIMETER",
                subfiletype=int(level > 1), metadata=None,
            )  # fmt: skip
    return path


def flop_per_patch(model, patch_px):
    """Floating-point operations of a forward pass on one patch, counted by PyTorch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.cpu()(torch.zeros(1, 3, patch_px, patch_px))
    return counter.get_total_flops()


def product_tflops(device, side, rounds):
    """TFLOP/s of the device's own large bf16 matrix product."""
    import torch

    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = timed(device, lambda: [a @ b for _ in range(10)], rounds)
    return 10 * 2 * side**3 / statistics.median(taken) / 1e12


def measure_half(report, model, slide, patch, peak, readers):
    """The same on patches of half the size, which need a quarter: a share of the bf16 product."""
    from tiling.build import tile_slide
    from tiling.contracts import TileConfig, TissueConfig
    from tiling.store import PatchStore
    from wsi_pipeline.inference import predict_store
    from wsi_pipeline.models.checkpoint import CheckpointMeta

    flop, patch_px = patch
    config = TileConfig(
        target_mpp=0.5, patch_px=patch_px, store="coords", tissue=TissueConfig(min_fraction=0.0)
    )
    folder = report.scratch / "half.zarr"
    tile_slide(slide, folder, slide_id="slide", config=config, mpp=0.5)
    meta = CheckpointMeta("vgg16", model.options, patch_px=patch_px, target_mpp=0.5)
    rates = []
    with PatchStore.open(folder, slide_path=slide) as store:
        for _ in range(2 if report.quick else 3):  # the first one warms up
            synchronize(report.device)
            started = time.perf_counter()
            scores, _ = predict_store(
                model, meta, store, device=report.device, precision="bf16", readers=readers
            )
            rates.append(len(scores) / (time.perf_counter() - started))
    rate = statistics.median(rates[1:])
    share = rate * flop / 1e12 / peak
    report.row(
        f"slide to scores at {patch_px} px",
        f"{rate:.4g} patches/s, {100 * share:.1f} % of the bf16 product",
    )
    report.more |= {"half_patches_per_s": rate, "half_share": share}


def predict(report):
    """VGG16 in bf16, from a slide file to scores, against the card's own product."""
    import torch

    from tiling.build import tile_slide
    from tiling.contracts import TileConfig, TissueConfig
    from tiling.store import PatchStore
    from wsi_pipeline.cli.app import main as command
    from wsi_pipeline.config.devices import compute_in, place_model
    from wsi_pipeline.inference import predict_store
    from wsi_pipeline.models import build_model
    from wsi_pipeline.models.checkpoint import CheckpointMeta, save_checkpoint

    device, quick = report.device, report.quick
    patch_px, columns, width = (64, 6, 0.0625) if quick else (512, 64, 1.0)
    slide = make_slide(report.scratch / "slide.tif", columns * patch_px)
    report.row("slide", f"{columns * patch_px} px square, {slide.stat().st_size / 1e6:.0f} MB")
    torch.manual_seed(0)
    model = build_model("vgg16", width=width)
    flop = flop_per_patch(model, patch_px)
    report.row("VGG16 per patch", f"{flop / 1e9:.3g} GFLOP at {patch_px} px")
    config = TileConfig(
        target_mpp=0.5, patch_px=patch_px, store="coords", tissue=TissueConfig(min_fraction=0.0)
    )
    folder = report.scratch / "coords.zarr"
    tile_slide(slide, folder, slide_id="slide", config=config, mpp=0.5)
    meta = CheckpointMeta("vgg16", {"width": width}, patch_px=patch_px, target_mpp=0.5)
    checkpoint = report.scratch / "vgg16.safetensors"
    save_checkpoint(checkpoint, model, meta)

    peak = product_tflops(device, *((64, 2) if quick else (8192, 5)))
    report.row("bf16 product", f"{peak:.3g} TFLOP/s")
    readers = os.cpu_count() or 2
    measure_half(report, model, slide, (flop / 4, patch_px // 2), peak, readers)
    rates, summary = [], None
    with PatchStore.open(folder, slide_path=slide) as store:
        for turn in range(2 if quick else 4):  # the first one warms up
            synchronize(device)
            started = time.perf_counter()
            scores, summary = predict_store(
                model, meta, store, device=device, precision="bf16", readers=readers
            )
            synchronize(device)
            require(np.isfinite(scores).all(), "some patches have no score")
            if turn:
                rates.append(len(scores) / (time.perf_counter() - started))
        n_patches = len(store)
    rate = statistics.median(rates)
    share = rate * flop / 1e12 / peak
    spread = f"({min(rates):.4g} to {max(rates):.4g}, {n_patches} patches, {readers} readers)"
    report.row("slide to scores", f"{rate:.4g} patches/s {spread}")
    report.row("of the bf16 product", f"{100 * share:.1f} % (target {100 * TARGET_SHARE:.0f} %)")
    report.row("where the time went", str(summary))
    size = min(summary.batch_size, n_patches)
    x = torch.rand(size, 3, patch_px, patch_px, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    bare_model = place_model(model, device).eval()

    def bare():
        with torch.inference_mode(), compute_in("bf16", device):
            for _ in range(4):
                bare_model(x)

    bare_rate = 4 * size / statistics.median(timed(device, bare, 3))
    report.row("bare forward pass", f"{bare_rate:.4g} patches/s in batches of {size}")
    report.row("slide to scores / bare", f"{100 * rate / bare_rate:.1f} %")
    report.more |= {"patches_per_s": rate, "tflops": peak, "share": share, "bare": bare_rate}

    started = time.perf_counter()
    run = str(report.scratch / "run")
    arguments = ["predict", run, "--checkpoint", str(checkpoint), "--slides", str(slide)]
    arguments += ["--set", "precision=bf16", "--set", "tile.tissue.min_fraction=0.0"]
    code = command([*arguments, "--device", str(device), "--quiet"])
    require(code == 0, f"wsi-pipeline predict ended with exit code {code}")
    report.row("wsi-pipeline predict --slides", f"{time.perf_counter() - started:.1f} s in all")


# ---------------------------------------------------------------- train


def bare_training_rate(config, report, patch_px):
    """Patches/s of forward pass, backward pass and optimiser on one batch that is there already."""
    import torch

    from wsi_pipeline.config.devices import compute_in
    from wsi_pipeline.training.recipe import build_classifier, build_optimizer

    device = report.device
    model = build_classifier(config, device).train()
    optimizer = build_optimizer(config, model)
    x = torch.rand(config.batch_size, 3, patch_px, patch_px, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = (torch.arange(config.batch_size, device=device) % 2).float()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with compute_in(config.precision, device):
            loss = model.loss(x, y)
        loss.backward()
        optimizer.step()

    steps = 2 if report.quick else 10
    taken = timed(device, lambda: [step() for _ in range(steps)], 2)
    return steps * config.batch_size / min(taken)


def train(report):
    """One epoch of VGG16 in each precision, from patch stores; the same bits twice."""
    from dataclasses import replace

    from tiling.build import tile_slide
    from tiling.contracts import TileConfig, TissueConfig
    from tiling.store import PatchStore
    from wsi_pipeline.config.settings import ModelConfig, TrainConfig
    from wsi_pipeline.training import train_model

    quick = report.quick
    patch_px, columns = (64, 6) if quick else (256, 16)
    config = TileConfig(
        target_mpp=0.5, patch_px=patch_px, inner_px=patch_px // 2,
        tissue=TissueConfig(min_fraction=0.0),
    )  # fmt: skip
    side = columns * patch_px
    half = [[[0, 0], [side // 2, 0], [side // 2, side], [0, side], [0, 0]]]
    outline = report.scratch / "half.geojson"
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": half}}
    feature["properties"] = {"classification": {"name": "Tumor"}}
    outline.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    stores = []
    for name in ("a", "b"):
        slide = make_slide(report.scratch / f"{name}.tif", side)
        folder = report.scratch / f"{name}.zarr"
        tile_slide(
            slide, folder, slide_id=name, config=config, annotation_path=outline, slide_label=1,
            mpp=0.5,
        )  # fmt: skip
        stores.append(PatchStore.open(folder))
    steps, batch = (2, 4) if quick else (30, 64)
    settings = TrainConfig(
        model=ModelConfig("vgg16", {"width": 0.0625} if quick else {}),
        batch_size=batch, steps_per_epoch=steps, max_epochs=1, val_patches=8 * batch,
    )  # fmt: skip
    digests = {}
    names = ["fp32", "bf16"]
    if report.device.type == "cuda":
        names = ["bf16", "fp32", "fp16", "bf16 again"]  # the first one starts cuDNN as well
    for name in names:
        out = report.scratch / name.replace(" ", "_")
        synchronize(report.device)
        summary = train_model(
            replace(settings, precision=name.split()[0]), train=stores[:1], val=stores[1:],
            patients={"a": "a", "b": "b"}, out=out, device=report.device, fingerprint="",
            readers=min(8, os.cpu_count() or 2),
        )  # fmt: skip
        digests[name] = (out / "checkpoint.safetensors").read_bytes()
        rate = steps * batch / summary.best.seconds
        bare = bare_training_rate(replace(settings, precision=name.split()[0]), report, patch_px)
        report.row(
            f"one epoch in {name}",
            f"{summary.best.seconds:.1f} s, {rate:.3g} patches/s, bare loop {bare:.3g}: "
            f"{100 * rate / bare:.0f} %; waited {summary.seconds_waited:.1f} s; "
            f"loss {summary.best.train_loss:.3f}",
        )
        require(np.isfinite(summary.best.train_loss), f"{name}: the loss is not finite")
    if "bf16 again" in digests:
        same = digests["bf16"] == digests["bf16 again"]
        report.row("the same bits twice", "yes" if same else "no")
        require(same, "two trainings with the same settings gave different weights")


# ---------------------------------------------------------------- memory


class TooLarge:
    """Makes a model refuse batches of more than `most` patches, as a full memory does."""

    def __init__(self, model, most):
        self.most = most
        model.register_forward_pre_hook(self)

    def __call__(self, module, inputs):
        """Raise what a full memory raises."""
        import torch

        if len(inputs[0]) > self.most:
            raise torch.OutOfMemoryError("simulated")


def memory(report):
    """A batch that does not fit is halved until it does; the scores stay the same."""
    import torch

    from tests.wsi_pipeline.conftest import FakeStore
    from wsi_pipeline.inference import predict_store
    from wsi_pipeline.models import build_model
    from wsi_pipeline.models.checkpoint import CheckpointMeta

    on_gpu = report.device.type == "cuda"
    patch_px, count, width = (512, 128, 1.0) if on_gpu and not report.quick else (64, 24, 0.0625)
    store = FakeStore("s", [0, 1] * (count // 2), patch_px=patch_px)
    meta = CheckpointMeta("vgg16", {"width": width}, patch_px=patch_px, target_mpp=0.5)
    torch.manual_seed(0)
    model = build_model("vgg16", width=width)
    precision = "bf16" if on_gpu else "fp32"
    expected, _ = predict_store(
        model, meta, store, device=report.device, precision=precision, batch_size=2
    )
    limit = 4 * 2**30 if patch_px == 512 else 2**27
    if on_gpu:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(report.device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total, report.device)
        report.row("memory allowed", f"{limit / 2**30:.3g} GiB of {total / 2**30:.0f} GiB")
    else:
        TooLarge(model, 5)
        report.row("memory allowed", "simulated: 5 patches")
    scores, summary = predict_store(
        model, meta, store, device=report.device, precision=precision, batch_size=count
    )
    report.row("batch asked for, and used", f"{count}, {summary.batch_size}")
    difference = float(np.abs(scores - expected).max())
    report.row("largest difference of a score", f"{difference:.1e}")
    require(summary.batch_size < count, "the batch fitted: nothing was tested")
    require(difference < (0.02 if on_gpu else 1e-5), "scores changed with the batch")


# ---------------------------------------------------------------- dense


def dense(report):
    """PatchNet's dense map on the device: equal to the CPU's, and how fast."""
    import torch
    from torch import nn

    from wsi_pipeline.models.patchnet import Subnet

    device, quick = report.device, report.quick
    torch.set_num_threads(1)
    filters, side = (8, 40) if quick else (64, 256)
    for m in (5,) if quick else (17, 31):
        torch.manual_seed(m)
        net = Subnet(m, filters=filters)
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        net, image = net.requires_grad_(False), torch.rand(3, side, side)
        engine = net.dense_engine()
        engine.compiled = not quick
        small = image if quick else image[:, :96, :96].contiguous()
        cpu = torch.device("cpu")
        cpu_s = statistics.median(timed(cpu, lambda e=engine, x=small: e.map_image(x), 2))
        cpu_us = 1e6 * cpu_s / small.shape[1] ** 2
        expected = engine.map_image(small)
        q = net.combine_filters(expected)
        there = net.to(device).dense_engine()
        found = there.map_image(small.to(device))
        error = float((found.cpu() - expected).abs().max())
        q_error = float((net.combine_filters(found).cpu() - q.cpu()).abs().max())
        whole = image.to(device)
        device_s = statistics.median(timed(device, lambda e=there, x=whole: e.map_image(x), 3))
        us = 1e6 * device_s / side**2
        report.row(
            f"m = {m}, {filters} filters",
            f"{us:.3g} µs per patch, CPU {cpu_us:.3g} µs on one core: {cpu_us / us:.3g} times "
            f"(target {TARGET_DENSE}); largest difference {error:.1e}, of Q {q_error:.1e}",
        )
        report.more[f"m{m}"] = {"us": us, "cpu_us": cpu_us, "error": error, "q_error": q_error}
        require(max(error, q_error) <= 1e-5, f"m = {m}: maps differ by {max(error, q_error):.1e}")


# ---------------------------------------------------------------- tests


def tests(report):
    """The tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "windows_join or fp32_is_exact"] if report.quick else []
    environment = os.environ | {"WSI_TEST_DEVICE": str(report.device)}
    done = subprocess.run(
        [*command, "tests/gpu"], cwd=ROOT, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout)
    lines = done.stdout.strip().splitlines()
    report.row("pytest -m gpu", lines[-1].strip("= ") if lines else "printed nothing")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    for name in failed:
        report.row("failed", name)
    require(done.returncode == 0, f"pytest ended with exit code {done.returncode}")


PARTS = {part.__name__: part for part in (packages, predict, variants, train, memory, dense, tests)}


def main():
    """Run one part and write what it found, whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    asked = parser.parse_args()
    result = {"ok": False, "rows": [], "reason": ""}
    report = None
    try:
        import torch

        report = Report(torch.device(asked.device), asked.scratch, asked.quick)
        if report.device.type == "cuda":
            require(torch.cuda.is_available(), "PyTorch sees no CUDA device")
        PARTS[asked.part](report)
        result["ok"] = True
    except Exception as error:
        traceback.print_exc()
        result["reason"] = f"{type(error).__name__}: {error}".splitlines()[0]
    if report is not None:
        result |= {"rows": report.rows} | report.more
    asked.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
