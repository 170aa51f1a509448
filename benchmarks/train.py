"""Training against a bare loop on tensors that are already there.

Ours is one epoch of `train`: sampling in three steps, reading from a patch store of two slides,
conversion, augmentation (the recipe's, on by default), forward and backward pass, optimiser, the
check of each loss, progress. The bare loop has the same batches, converted and augmented before any
time is taken: forward and backward pass, optimiser. Both start from the same weights, and their
losses must be equal in every bit (fp32 on a CPU). Not counted on either side: opening the stores,
validation, writing files.

Both ratios are reported: of seconds, for which a core that reads must be free, and of
processor time, all threads together. The network is tiny, so that what is around it shows; a VGG16
hides all of it.

    python benchmarks/train.py
    python benchmarks/train.py --patch-px 256 --width 0.25
"""

import argparse
import copy
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from predict import make_slide

from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.files import write_json
from tiling.store import PatchStore
from wsi_pipeline.cohort.data import load_batch, to_unit_range
from wsi_pipeline.config.devices import compute_in, resolve_device
from wsi_pipeline.config.settings import ModelConfig, TrainConfig
from wsi_pipeline.training.augment import Augment
from wsi_pipeline.training.loop import _Training, epoch_seed
from wsi_pipeline.training.recipe import build_optimizer

RESULT = Path(__file__).parent / "results" / "train.json"


class Labelled:
    """A patch store with labels of its own: every third patch is tumour."""

    def __init__(self, store):
        self._store = store
        self.label = (np.arange(len(store)) % 3 == 0).astype(np.int8)

    def __getattr__(self, name):
        return getattr(self._store, name)

    def __len__(self):
        return len(self._store)


def cut(slide, folder, patch_px):
    """Tile a slide into stored patches, without looking for tissue."""
    config = TileConfig(
        target_mpp=0.5, patch_px=patch_px, store="patches", tissue=TissueConfig(min_fraction=0.0)
    )
    tile_slide(slide, folder, slide_id=folder.stem, config=config, mpp=0.5)
    return Labelled(PatchStore.open(folder, slide_path=slide))


def make_batches(config, stores, training, device):
    """The batches of the first epoch as the network sees them, (x, y)."""
    training._sampler.set_state({"seed": config.seed, "drawn": 0})
    slide, patch, label = training._sampler.draw(config.steps_per_epoch * config.batch_size)
    augment = Augment(config.augment, seed=epoch_seed(config.seed, 1))
    batches = []
    for start in range(0, len(label), config.batch_size):
        rows = np.arange(start, start + config.batch_size)
        x = to_unit_range(load_batch(stores, slide[rows], patch[rows]).pixels, device)
        y = torch.from_numpy(label[rows].astype(np.float32)).to(device)
        batches.append((augment(x, rows), y))
    training._sampler.set_state({"seed": config.seed, "drawn": 0})
    return batches


def run_bare(config, model, batches, device):
    """Forward, backward, optimiser, and nothing else: mean loss."""
    torch.manual_seed(epoch_seed(config.seed, 1))
    optimizer = build_optimizer(config, model)
    model.train()
    losses = []
    for x, y in batches:
        optimizer.zero_grad(set_to_none=True)
        with compute_in(config.precision, device):
            loss = model.loss(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(np.mean(torch.stack(losses).double().cpu().numpy()))


def synchronize(device):
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(config, stores, device, readers, rounds):
    """Steps per second of both, in turn."""
    torch.manual_seed(0)
    first = _Training(config, stores, (), device=device, readers=readers)
    batches = make_batches(config, stores, first, device)
    weights = copy.deepcopy(first.model.state_dict())
    ours, bare, busy = [], [], []  # seconds, and a ratio of processor seconds
    for turn in range(rounds + 1):  # the first one warms up
        torch.manual_seed(0)
        training = _Training(config, stores, (), device=device, readers=readers)
        training.model.load_state_dict(weights)
        started, processor = time.perf_counter(), time.process_time()
        loss = training._train_once(1, None)
        synchronize(device)
        ours.append(time.perf_counter() - started)
        ours_processor = time.process_time() - processor
        first.model.load_state_dict(weights)
        started, processor = time.perf_counter(), time.process_time()
        alone = run_bare(config, first.model, batches, device)
        synchronize(device)
        bare.append(time.perf_counter() - started)
        busy.append((time.process_time() - processor) / ours_processor)
        exact = device.type == "cpu" and config.precision == "fp32"
        if abs(loss - alone) > (1e-7 if exact else 2e-2) * abs(alone):
            raise SystemExit(f"mean losses differ: {loss} and {alone}")
        if not turn:
            ours.clear(), bare.clear(), busy.clear()
    ratios = [b / a for a, b in zip(ours, bare, strict=True)]
    steps = config.steps_per_epoch
    return {
        "share_of_bare": {
            "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
        },
        "processor_share_of_bare": statistics.median(busy),
        "ms_per_step": 1e3 * statistics.median(ours) / steps,
        "bare_ms_per_step": 1e3 * statistics.median(bare) / steps,
        "patches_per_s": steps * config.batch_size / statistics.median(ours),
    }  # fmt: skip


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--patch-px", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.03125, help="of the VGG11's layers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="torch's, on a CPU")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = resolve_device(asked.device)
    config = TrainConfig(
        model=ModelConfig("vgg11_pooled", {"width": asked.width}),
        batch_size=asked.batch,
        steps_per_epoch=asked.steps,
        precision=asked.precision,
        monitor="none",
        sampling="balanced",
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tif"
        make_slide(slide, 4, 4)
        stores = [cut(slide, Path(folder) / f"{n}.zarr", asked.patch_px) for n in "ab"]
        result = measure(config, stores, device, asked.readers, asked.rounds)
    print(json.dumps(result), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    settings = {name: getattr(asked, name) for name in ("steps", "batch", "patch_px", "width")}
    settings |= {"precision": asked.precision, "readers": asked.readers, "threads": asked.threads}
    machine = {"cpu": platform.machine(), "torch": torch.__version__, "device": str(device)}
    write_json(
        asked.out,
        {"benchmark": "train", "rounds": asked.rounds, "settings": settings, "machine": machine}
        | {"peak_rss_gib": peak, "results": result},
    )


if __name__ == "__main__":
    main()
