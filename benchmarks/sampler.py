"""Three-step draws of the lecture's data set, against torch's WeightedRandomSampler.

Both draw batches of one size from 7,878,675 patches of 698 slides with the same probabilities: ours
from its index, torch's from one weight per patch. Counted: the draws. Not counted: imports, labels,
and the making of torch's weights. Memory is what Python and numpy allocate for the index.

    python benchmarks/sampler.py
"""

import argparse
import json
import platform
import statistics
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

from tiling.files import write_json
from wsi_pipeline.training.sampling import ThreeStepSampler

N_PATCHES, N_SLIDES = 7_878_675, 698
BATCHES = (32, 256, 1024, 32_000, 100_000)  # 32,000: a whole epoch of the default settings
RESULT = Path(__file__).parent / "results" / "sampler.json"


def make_labels(rng):
    """Slides of uneven size, tumour on every second one."""
    cuts = np.sort(rng.choice(N_PATCHES - 1, N_SLIDES - 1, replace=False) + 1)
    labels = np.split(np.zeros(N_PATCHES, np.int8), cuts)
    for of_slide in labels[::2]:
        of_slide[: 1 + len(of_slide) // 10] = 1
    return labels


def make_weights(labels):
    """The same probabilities, patch by patch."""
    n_slides = [sum(bool((of == y).any()) for of in labels) for y in (0, 1)]
    weights = [np.zeros(len(of)) for of in labels]
    for of_slide, weight in zip(labels, weights, strict=True):
        for y in (0, 1):
            rows = of_slide == y
            weight[rows] = 1 / 2 / n_slides[y] / max(1, rows.sum())
    return torch.from_numpy(np.concatenate(weights))


def rate(draw, n, least=0.2):
    """Draws per second of processor time, over at least `least` seconds."""
    start, done = time.process_time(), 0
    while time.process_time() - start < least:
        draw(n)
        done += n
    return done / (time.process_time() - start)


def measure_index(labels):
    """Seconds to make the index, MB it keeps, MB at its making's peak."""
    start = time.process_time()
    ThreeStepSampler(labels, seed=0)
    seconds = time.process_time() - start
    tracemalloc.start()
    sampler = ThreeStepSampler(labels, seed=0)
    kept, peak = (value / 1e6 for value in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    return sampler, {"setup_s": seconds, "index_mb": kept, "peak_mb": peak}


def check_probabilities(sampler, weights, labels, rng):
    """Both give a patch the same chance."""
    starts = np.cumsum([0] + [len(of) for of in labels])
    for slide in rng.choice(N_SLIDES, 50, replace=False):
        patch = int(rng.integers(len(labels[slide])))
        np.testing.assert_allclose(
            sampler.probability(int(slide), patch), weights[starts[slide] + patch], rtol=1e-9
        )


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    labels = make_labels(rng)
    weights = make_weights(labels)
    sampler, index = measure_index(labels)
    check_probabilities(sampler, weights, labels, rng)
    print(json.dumps(index), flush=True)
    rows = []
    for batch in BATCHES:
        ours, torchs = [], []
        for _ in range(arguments.rounds):
            ours.append(rate(sampler.draw, batch))
            torchs.append(rate(lambda n: list(WeightedRandomSampler(weights, n)), batch))
        ratios = [a / b for a, b in zip(ours, torchs, strict=True)]
        rows.append(
            {
                "batch": batch,
                "ours_per_s": statistics.median(ours),
                "torch_per_s": statistics.median(torchs),
                "ratio": statistics.median(ratios),
                "ratio_spread": [min(ratios), max(ratios)],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    machine = {"cpu": platform.machine(), "python": platform.python_version()}
    machine |= {"numpy": np.__version__, "torch": torch.__version__}
    settings = {"patches": N_PATCHES, "slides": N_SLIDES}
    write_json(
        arguments.out,
        {
            "benchmark": "sampler",
            "settings": settings,
            "rounds": arguments.rounds,
            "machine": machine,
        }
        | {"index": index, "results": rows},
    )


if __name__ == "__main__":
    main()
