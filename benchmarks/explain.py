"""What each explanation method costs, in forward passes of one image.

VGG16 (its last maps' maximum, as on slides) on one real or drawn patch of 224 x 224 px. Processor
time of two threads: the least of several calls of a method that takes seconds, one call of those
that take minutes. The baseline, timed before and after each method, is one forward pass of the
image by itself; methods that pass many copies do so in batches. Not counted: imports, reading, and
pictures. PatchNet, CAM and ProtoPNet explain themselves and are timed on networks of their own,
each against its own forward pass. Threads that wait for work must not spin, or a busy machine adds
to their time: OMP_WAIT_POLICY=PASSIVE.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/explain.py --weights vgg16.safetensors --patch it.png
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiling.files import write_json
from wsi_pipeline.explain import METHODS, load_method
from wsi_pipeline.explain.curves import CurveSettings, trace_curves
from wsi_pipeline.models import build_model
from wsi_pipeline.models.pretrained import load_imagenet_weights

RESULT = Path(__file__).parent / "results" / "explain.json"
SIDE = 224
OWN = {  # method -> model, options
    "patchnet": ("patchnet", {"m": 17}),
    "cam": ("cam", {}),
    "prototypes": ("protopnet", {}),
}
LONG = ("occlusion", "lime", "unveiling", "smoothgrad", "guided_smoothgrad", "curves")


def read_patch(path):
    """The centre of a patch, or noise where there is none: (1, 224, 224, 3) uint8."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    with Image.open(path) as picture:
        image = np.array(picture.convert("RGB"))
    top, left = ((length - SIDE) // 2 for length in image.shape[:2])
    return image[None, top : top + SIDE, left : left + SIDE]


def processor_seconds(function, *arguments, rounds=1, **options):
    """Least processor time of some calls."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function(*arguments, **options)
        times.append(time.process_time() - start)
    return min(times)


def forward(model, images):
    """Score one image."""
    with torch.inference_mode():
        return model.eval().score(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def measure(name, model, images, rounds):
    """Time one method, and the forward pass around it."""
    before = processor_seconds(forward, model, images, rounds=rounds)
    rounds_of = 1 if name in LONG else rounds
    if name == "curves":
        values = np.random.default_rng(0).random(images.shape[1:3])
        trace = (model, images[0], values)
        seconds = processor_seconds(trace_curves, *trace, config=CurveSettings(steps=16))
    else:
        seconds = processor_seconds(load_method(name), model, images, rounds=rounds_of)
    passed = min(before, processor_seconds(forward, model, images, rounds=rounds))
    return {"method": name, "seconds": seconds, "forward_s": passed, "ratio": seconds / passed}


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="VGG16's; without: random ones")
    parser.add_argument("--patch", type=Path, help="picture of 224 px or more; without: noise")
    parser.add_argument("--method", action="append", help="default: all, and the curves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    vgg16 = build_model("vgg16")
    if arguments.weights is not None:
        load_imagenet_weights(vgg16, arguments.weights)
    images = read_patch(arguments.patch)
    rows = []
    for name in arguments.method or (*METHODS, "curves"):
        own = OWN.get(name)
        model = vgg16 if own is None else build_model(own[0], **own[1])
        row = measure(name, model, images, arguments.rounds)
        rows.append({**row, "model": "vgg16" if own is None else own[0]})
        print(f"{name}: {row['seconds']:.2f} s, {row['ratio']:.1f} forward passes", flush=True)
    machine = {"cpu": platform.machine(), "python": platform.python_version()}
    machine |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    settings = {"image_px": SIDE, "weights": arguments.weights and arguments.weights.name}
    found = {"benchmark": "explain", "settings": settings, "rounds": arguments.rounds}
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, found | {"machine": machine, "results": rows})


if __name__ == "__main__":
    main()
