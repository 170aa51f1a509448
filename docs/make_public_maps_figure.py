"""Draw docs/images/maps_glas.jpg and maps_isic2017.jpg: maps of several models on public images.

    python docs/make_public_maps_figure.py docs/images/maps_glas.jpg RUN/explanations/cam/cam ...

One row per image of the first folder (at most three of each class): the image as the networks saw
it with the outline of its mask, if it has one, and its map by each folder of maps, `explain`'s or
`heatmap`'s. A white pixel is a higher value, from the least to the greatest of the map.
docs/reproduction.md has the commands that make the runs.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import tifffile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PER_CLASS = 3


def find_run(folder: Path) -> Path:
    """Find the run that a folder of maps lies in."""
    return next(parent for parent in folder.resolve().parents if (parent / "images.csv").is_file())


def find_map(folder: Path, image_id: str) -> Path | None:
    """Find an image's map, written by `explain` or by `heatmap`."""
    return next(iter(sorted(folder.glob(f"{image_id}.*tif"))), None)


def main() -> None:
    """Draw one picture."""
    out, *folders = (Path(argument) for argument in sys.argv[1:])
    run = find_run(folders[0])
    with (run / "images.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    shown: list[int] = []
    for name in dict.fromkeys(image["class"] for image in images):
        rows = [i for i, image in enumerate(images) if image["class"] == name]
        found = [
            i for i in rows if all(find_map(folder, images[i]["image_id"]) for folder in folders)
        ]
        shown += found[:PER_CLASS]
    pixels = np.load(run / "tiles/images.npy", mmap_mode="r")
    masked = run / "tiles/masks.npy"
    masks = np.load(masked, mmap_mode="r") if masked.is_file() else None
    columns = 1 + len(folders)
    figure = Figure(figsize=(2.2 * columns, 1.6 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, index in enumerate(shown):
        image = images[index]
        height, width = pixels.shape[1:3]
        axes[row, 0].imshow(pixels[index])
        axes[row, 0].set_ylabel(image["class"], fontsize=8)
        if masks is not None:
            axes[row, 0].contour(masks[index] > 0, levels=[0.5], colors="yellow", linewidths=0.7)
        for column, folder in enumerate(folders, start=1):
            path = find_map(folder, image["image_id"])
            values = tifffile.imread(path)
            axes[row, column].imshow(values, cmap="gray", extent=(0, width, height, 0))
            if row == 0:
                if folder.parent.name == "heatmaps":  # the method is in the file's name
                    names = (folder.name, path.suffixes[-2].removeprefix("."))
                else:
                    names = (folder.parent.name, folder.name)
                axes[row, column].set_title("\n".join(names), fontsize=8)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(out, dpi=110, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
