"""Draw docs/images/convergence_curves.png: p0 and p1 of the toy experiment, step by step.

    python docs/make_convergence_figure.py

The networks are those of configs/patchnet_convergence.yaml, the images those of
`wsi_pipeline.demo.toy`. Each step uses one image of each class, and equal patches are computed
once, weighted by their number: loss and gradient are those of all 128 patches, in minutes. Prints
the table of docs/convergence.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn import functional as F

from wsi_pipeline.config.reading import read_config
from wsi_pipeline.demo.toy import toy_image
from wsi_pipeline.models import PatchClassifier, build_model
from wsi_pipeline.models.convergence import toy_optimum

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "convergence_curves.png"
PAPER = (0.333, 0.982)  # paper 1, appendix A: p0 and p1 reached
FAST = 1e-3  # learning rate of the runs in addition to the paper's
RUNS = {"paper": (None, 1500, (0, 1, 2)), "fast": (FAST, 600, (0,))}  # rate, steps, seeds


@dataclass(frozen=True)
class Toy:
    """The patches of both images, each distinct one once."""

    patches: torch.Tensor  # (n, 1, m, m), ascending: black first, white last
    counts: torch.Tensor  # (2, n) how often each comes in the image of class 0 and of class 1

    @property
    def target(self) -> float:
        """The p0 predicted, where patches that are partly white count as white."""
        a = int(self.counts[1, 0])
        return toy_optimum(a, int(self.counts[1].sum()) - a)

    def describe(self) -> str:
        """White, partly white and black patches of the class-1 image."""
        black, *mixed, white = self.counts[1].tolist()
        return f"{white}, {sum(mixed)}, {black}"


def make_toy(model: PatchClassifier) -> Toy:
    """Cut the two images as a model does."""
    images = torch.from_numpy(np.stack([toy_image(label) for label in (0, 1)]))
    patches = model.cut(images[:, None].float() / 255)
    flat = patches.flatten(2).flatten(0, 1)
    distinct, which = flat.unique(dim=0, return_inverse=True)
    counts = [row.bincount(minlength=len(distinct)) for row in which.view(2, -1)]
    return Toy(distinct.view(-1, *patches.shape[2:]), torch.stack(counts))


def train(options: dict[str, object], *, lr: float, steps: int, seed: int) -> np.ndarray:
    """Train on both images: (steps, 3) p0, p1 and the class-1 image's P before each step."""
    torch.manual_seed(seed)
    model = build_model("patchnet", **options)
    toy = make_toy(model)
    log_share = (toy.counts / toy.counts.sum(dim=1, keepdim=True)).log()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        z = model.subnet(toy.patches)
        log_p = torch.logsumexp(F.logsigmoid(z) + log_share[1], dim=0)
        log_not_p = torch.logsumexp(F.logsigmoid(-z) + log_share[0], dim=0)
        (-log_p - log_not_p).backward()
        optimizer.step()
        q = z.detach().sigmoid()
        found.append((float(q[0]), float(q[-1]), float(log_p.detach().exp())))
    return np.array(found)


def first_below(distance: np.ndarray, limit: float) -> int:
    """Step from which a distance stays below a limit; -1: never."""
    above = np.flatnonzero(distance >= limit)
    step = int(above[-1]) + 1 if above.size else 0
    return step if step < len(distance) else -1


def main() -> None:
    """Train, print the table, draw the picture."""
    torch.set_num_threads(1)
    config = read_config(ROOT / "configs" / "patchnet_convergence.yaml")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = dict(zip(RUNS, figure.subplots(1, 2, sharey=True), strict=True))
    sys.stdout.write("grid    rate     seed  white, mixed, black  predicted p0      p0      p1")
    sys.stdout.write("    P(I1)  |p0 - predicted| < .01 from  p1 > .982 from\n")
    for kind, (rate, steps, seeds) in RUNS.items():
        for number, recipe in enumerate(config.train.values()):
            options = recipe.model.options
            toy, colour = make_toy(build_model("patchnet", **options)), f"C{number}"
            for seed in seeds if options["grid"] == "ceil" else seeds[:1]:
                lr = rate or recipe.lr
                p = train(options, lr=lr, steps=steps, seed=seed)
                near = first_below(np.abs(p[:, 0] - toy.target), 0.01)
                sure = first_below(PAPER[1] - p[:, 1], 0)
                line = f"{options['grid']:<8}{lr:<9g}{seed:<6}{toy.describe():<21}"
                line += f"{toy.target:12.4f}" + "".join(f"{value:8.4f}" for value in p[-1])
                sys.stdout.write(f"{line} {near:28} {sure:15}\n")
                sys.stdout.flush()
                name = f"{options['grid']}: p0 to {toy.target:.3f}" if seed == 0 else None
                axes[kind].plot(p[:, 0], color=colour, lw=1, label=name)
                axes[kind].plot(p[:, 1], color=colour, lw=1, ls="--")
            axes[kind].axhline(toy.target, color=colour, lw=0.6, ls=":")
        axes[kind].set_title(f"learning rate {lr:g}" + (", the paper's" if kind == "paper" else ""))
        axes[kind].set_xlabel("step")
        axes[kind].legend(frameon=False, loc="center right", fontsize=9)
    axes["paper"].set_ylabel("Q: p0 (solid), p1 (dashed)")
    axes["paper"].set_ylim(0, 1.02)
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
