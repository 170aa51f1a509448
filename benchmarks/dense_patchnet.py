"""PatchNet around every pixel of an image, against batches of patches.

One thread, processor time, both in turn. The patches' batch size is the fastest of several, in
the memory layout that suits convolutions (NHWC); cutting them is not counted. Counted on our side:
everything from the image to the filters' maps, but for the one-time transform of the weights and
(reported apart) the compiling. Both sides are compared before any time is taken.

Then the scores of whole patches, as `predict` computes them: a mean over thousands of small patches
at the papers' strides, by the engine and by the same program with the engine off.

    python benchmarks/dense_patchnet.py
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numba
import torch
from torch import nn
from torch.nn import functional as F

from tiling.files import write_json
from wsi_pipeline.inference.forward import Forward
from wsi_pipeline.models import build_model, patchnet
from wsi_pipeline.models.dense import DenseEngine
from wsi_pipeline.models.patchnet import Subnet

RESULT = Path(__file__).parent / "results" / "dense_patchnet.json"
BATCHES = (16, 32, 64, 128, 256)
TOLERANCE = 1e-5


def make_subnet(m):
    """A random network with 64 filters and biases that are not zero."""
    torch.manual_seed(m)
    net = Subnet(m)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return net.requires_grad_(False)


def cut_patches(image, m):
    """Every patch, (H W, c, m, m), channels last."""
    windows = F.pad(image, (m // 2,) * 4).unfold(1, m, 1).unfold(2, m, 1)
    patches = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
    return patches.contiguous(memory_format=torch.channels_last)


def patch_by_patch(net, patches, batch):
    """(H W, filters)."""
    return torch.cat([net.filter_outputs(part) for part in patches.split(batch)])


def processor_seconds(function, *arguments):
    """Processor time of one call."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def measure(m, size, rounds, ways):
    """Compare for equality, then time in turn."""
    net, image = make_subnet(m), torch.rand(3, size, size)
    convolutions = [layer for layer in net.convolutions if isinstance(layer, nn.Conv2d)]
    patches = cut_patches(image, m)
    some = patches[:1024]
    times = {
        n: min(processor_seconds(patch_by_patch, net, some, n) for _ in range(2)) for n in BATCHES
    }
    batch = min(times, key=times.get)
    tanh = patch_by_patch(net, patches, batch).T.reshape(-1, size, size)
    rows, maps = {}, {}
    for way, options in ways.items():
        engine = DenseEngine(convolutions, net.readout_weight, net.readout_bias, **options)
        first = processor_seconds(engine.map_image, image)
        made = engine.map_image(image)
        error = (made - tanh).abs().max().item()
        q_error = (net_q(net, made) - net_q(net, tanh)).abs().max().item()
        if max(error, q_error) > TOLERANCE:
            raise SystemExit(f"m={m}, {way}: maps differ by {error}, Q by {q_error}")
        maps[way] = engine.map_image
        rows[way] = {"error_filters": error, "error_q": q_error, "first_call_s": first}
    naive, taken = [], {way: [] for way in ways}
    for _ in range(rounds):
        naive.append(processor_seconds(patch_by_patch, net, patches, batch))
        for way, function in maps.items():
            taken[way].append(processor_seconds(function, image))
    us = 1e6 / size**2
    for way, row in rows.items():
        ratios = [a / b for a, b in zip(naive, taken[way], strict=True)]
        row |= {
            "us_per_patch": min(taken[way]) * us,
            "ratio_of_minima": min(naive) / min(taken[way]),
            "ratio_median": statistics.median(ratios),
            "ratio_spread": [min(ratios), max(ratios)],
        }
    return {"m": m, "batch": batch, "patch_us": min(naive) * us, "ways": rows}


def measure_scores(m, side, rounds):
    """Seconds per image of `predict`, with the engine and without."""
    torch.manual_seed(m)
    model = build_model("patchnet", m=m).eval()
    forward = Forward(model, device=torch.device("cpu"), precision="fp32", limit=1)
    pixels = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)

    def score(*, work):
        before, patchnet.COMPILED_WORK = patchnet.COMPILED_WORK, work
        try:
            return forward.score(pixels, "image")
        finally:
            patchnet.COMPILED_WORK = before

    def by_engine():
        return score(work=0)

    def by_patches():
        return score(work=float("inf"))

    first = processor_seconds(by_engine)
    error = float(abs(by_engine() - by_patches()).max())
    if error > TOLERANCE:
        raise SystemExit(f"m={m}: scores differ by {error}")
    pairs = [(processor_seconds(by_engine), processor_seconds(by_patches)) for _ in range(rounds)]
    ratios = [patches / ours for ours, patches in pairs]
    return {
        "m": m,
        "stride": model.stride,
        "image_px": side,
        "error_score": error,
        "first_call_s": first,
        "engine_s": min(ours for ours, _ in pairs),
        "patches_s": min(patches for _, patches in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def net_q(net, tanh):
    """Q of the filters' maps."""
    return net.combine_filters(tanh)


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="side of the image, px")
    parser.add_argument("--image", type=int, default=256, help="side of a scored image, px")
    parser.add_argument("--only", choices=("map", "scores"), help="default: both")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "direct": {"products": "direct", "compiled": False},
        "torch": {"compiled": False},
        "compiled": {"compiled": True},
    }
    rows = []
    for m in (15, 17, 31) if arguments.only != "scores" else ():
        rows.append(measure(m, arguments.size, arguments.rounds, ways))
        print(json.dumps(rows[-1]), flush=True)
    scores = []
    for m in (15, 17, 31) if arguments.only != "map" else ():
        scores.append(measure_scores(m, arguments.image, arguments.rounds))
        print(json.dumps(scores[-1]), flush=True)
    machine = {"cpu": platform.machine(), "python": platform.python_version()}
    machine |= {"torch": torch.__version__, "numba": numba.__version__}
    write_json(
        arguments.out,
        {
            "benchmark": "dense_patchnet",
            "size": arguments.size,
            "rounds": arguments.rounds,
            "machine": machine,
        }
        | {"results": rows, "scores": scores},
    )


if __name__ == "__main__":
    main()
