"""Draw docs/images/patchnet_camelyon16.jpg: PatchNets of three patch sizes on held-out tissue.

Each row is a real CAMELYON16 patch of a slide that the networks were not trained on, followed by
the global maps for m = 11, 17 and 31 (black 0, white 1, not rescaled), and the filter of the
smallest network whose map correlates best with haematoxylin: the one that outlines nuclei.

    python docs/make_patchnet_figure.py RUN CAMELYON

RUN is a run of configs/camelyon16_patches.yaml without tumor_064, CAMELYON its folder of images
(docs/reproduction.md has both commands).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import rgb2hed

from wsi_pipeline.explain.patchnet import rescale_filters
from wsi_pipeline.models.checkpoint import load_checkpoint

SIDES = (11, 17, 31)
PATCHES = (
    "tumor/tumor_064_68097_138955.png",
    "tumor/tumor_064_68392_138180.png",
    "normal/tumor_064_18066_120787.png",
)
SIDE_PX = 64  # as the networks were trained: 0.97 µm per px
OUT = Path(__file__).parent / "images" / "patchnet_camelyon16.jpg"


def maps_of(run: Path, m: int, image: torch.Tensor):
    """Global map and filter maps of an image, by the run's network of side m."""
    model, _ = load_checkpoint(run / "models" / f"patchnet_{m}" / "checkpoint.safetensors")
    heatmap, tanh = model.dense_map(image)
    return heatmap.numpy(), rescale_filters(tanh.numpy())


def main() -> None:
    """Draw the picture."""
    run, folder = (Path(argument) for argument in sys.argv[1:3])
    figure = Figure(figsize=(10, 2.05 * len(PATCHES)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(PATCHES), len(SIDES) + 2)
    nuclei: int | None = None
    for row, name in enumerate(PATCHES):
        picture = Image.open(folder / name).convert("RGB")
        pixels = np.asarray(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        axes[row, 0].imshow(picture)
        axes[row, 0].set_ylabel(name.split("/")[0])
        for column, m in enumerate(SIDES, start=1):
            heatmap, filters = maps_of(run, m, image)
            axes[row, column].imshow(heatmap, cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_xlabel(f"mean {heatmap.mean():.2f}", fontsize=8)
            if m == SIDES[0]:
                if nuclei is None:
                    nuclei = best_with_haematoxylin(filters, pixels)
                axes[row, -1].imshow(filters[nuclei], cmap="gray", vmin=0, vmax=1)
    titles = ["patch", *(f"m = {m}" for m in SIDES), f"filter {nuclei} of m = {SIDES[0]}"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(OUT, dpi=90, pil_kwargs={"quality": 80})


def best_with_haematoxylin(filters: np.ndarray, pixels: np.ndarray) -> int:
    """Index of the filter map most correlated with the haematoxylin of the patch."""
    stain = rgb2hed(pixels)[..., 0].ravel()
    flat = filters.reshape(len(filters), -1)
    moving = flat.std(axis=1) > 0
    correlation = np.zeros(len(flat))
    correlation[moving] = [np.corrcoef(one, stain)[0, 1] for one in flat[moving]]
    return int(np.argmax(np.abs(correlation)))


if __name__ == "__main__":
    main()
