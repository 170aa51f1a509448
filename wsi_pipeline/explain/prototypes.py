"""This looks like that: which parts of an image resemble which prototypes, and what each adds.

References
----------
.. [1] Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition",
   NeurIPS 2019, figure 3 and section 2.1. Theirs are figures of one class; here contributions are
   to the logit, the difference of both.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.files import write_json
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.explain.base import Found, Method, Settings, Target, require
from wsi_pipeline.explain.pictures import OPACITY, draw_sheet, find_limits
from wsi_pipeline.models.protopnet import ProtoPNet, difference
from wsi_pipeline.models.prototype_boxes import PERCENTILE, Box, find_box, upsample
from wsi_pipeline.models.prototype_sources import PrototypeSource

_FRAME = np.array([255, 220, 0], np.uint8)  # yellow: neither stain has it


@dataclass(frozen=True)
class PrototypeSettings(Settings):
    """What is marked and shown."""

    percentile: float = PERCENTILE  # of the upsampled similarity: the box holds what is above
    shown: int = 6  # prototypes in the picture, by the size of their contributions

    def __post_init__(self) -> None:
        require(
            0 <= self.percentile <= 100 and self.shown >= 1,
            "prototypes' percentile is in [0, 100] and at least 1 prototype is shown, got "
            f"percentile={self.percentile}, shown={self.shown}",
        )


@dataclass(frozen=True)
class Resemblance:
    """One prototype, and the part of the image that resembles it most."""

    prototype: int
    label: int  # the prototype's class
    similarity: float  # at the most similar position, 0 to 9.21
    weight: float  # of the explained class minus the other
    box_px: Box  # in the image
    values: NDArray[np.float32]  # (h, w), its similarity over the pixels
    source: PrototypeSource | None  # None: the prototypes are not parts of images yet
    source_image: NDArray[np.uint8] | None  # (h', w', C)

    @property
    def contribution(self) -> float:
        """What it adds to the logit of the explained class."""
        return self.similarity * self.weight


@dataclass(frozen=True)
class ThisLooksLikeThat:
    """All prototypes of a network, found in one image."""

    image: NDArray[np.uint8]  # (h, w, C)
    target: Target
    logit: float  # of the explained class: y, or -y of class 0
    resemblances: tuple[Resemblance, ...]  # in the prototypes' order
    shown: int

    def strongest(self) -> list[Resemblance]:
        """Return all, those with the largest contributions of either sign first."""
        return sorted(self.resemblances, key=lambda one: -abs(one.contribution))

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``.csv``, a row for each prototype, strongest first, whose contributions add up to
        the logit; ``.json``, the logit; and ``_prototypes.png``, the strongest as rows of image,
        similarity, prototype and its source."""
        ends = (".csv", ".json", "_prototypes.png")
        table, about, picture = (folder / f"{stem}{end}" for end in ends)
        strongest = self.strongest()
        write_csv(table, _HEADER, [_make_row(one) for one in strongest])
        total = float(sum(one.contribution for one in strongest))
        write_json(
            about,
            {"target": self.target, "logit": self.logit, "sum_of_contributions": total},
        )
        draw_sheet(picture, self._draw(strongest))
        return [table, about, picture]

    def _draw(
        self, strongest: list[Resemblance]
    ) -> list[tuple[list[str], list[NDArray[np.uint8] | None]]]:
        limits = find_limits([one.values for one in strongest], signed=False)
        title = f"logit of class {self.target}: {self.logit:.3f}"
        left = strongest[self.shown :]
        rows: list[tuple[list[str], list[NDArray[np.uint8] | None]]] = [([title], [])]
        similarity = f"similarity {limits[0]:.2f} to {limits[1]:.2f}"
        rows.append((["the image", similarity, "prototype", "its source"], []))
        for one in strongest[: self.shown]:
            crop = source = None
            if one.source is not None and one.source_image is not None:
                crop = cut(one.source_image, one.source.box_px)
                source = frame(one.source_image, one.source.box_px)
            pictures = [frame(self.image, one.box_px), _colour(self, one, limits), crop, source]
            rows.append(([_describe(one)], pictures))
        if left:
            rest = sum(one.contribution for one in left)
            rows.append(([f"the other {len(left)} add {rest:+.3f}"], []))
        return rows


_BOX = ("x", "y", "width", "height")
_HEADER = [
    *("prototype", "class", "similarity", "weight", "contribution"),
    *(f"{name}_px" for name in _BOX),
    *("source_id", "source_row"),
    *(f"source_{name}_px" for name in _BOX),
    *(f"source_{name}_l0" for name in _BOX),
]


def _make_row(one: Resemblance) -> list[str | int | float | None]:
    source = one.source
    found = [one.prototype, one.label, one.similarity, one.weight, one.contribution, *one.box_px]
    if source is None:
        return [*found, *[None] * 10]
    on_slide = source.box_l0 or (None,) * 4
    return [*found, source.source_id, source.row, *source.box_px, *on_slide]


def _describe(one: Resemblance) -> str:
    source = f", from {one.source.source_id}" if one.source is not None else ""
    numbers = f"{one.similarity:.3f} x {one.weight:+.3f} = {one.contribution:+.3f}"
    return f"prototype {one.prototype} (class {one.label}{source}): {numbers}"


@torch.no_grad()
def find_prototypes(
    model: ProtoPNet, image: Tensor, *, target: Target, seed: int, config: PrototypeSettings
) -> Found:
    """Add up the similarities to all prototypes at each pixel: (1, C, h, w) -> (h, w).

    The map is sum_j dw_j g_j: g_j the similarities of all positions to prototype j, upsampled, and
    dw_j the weight of the explained class minus that of the other. It is the logit that the image
    would have if its similarities were those of this position alone. The logit itself takes each
    prototype's largest one, wherever it is.
    """
    sign = 1 if target == 1 else -1
    found = model.similarity_maps(image)  # (1, P, h', w')
    logit = sign * float(difference(model.weigh(found.amax(dim=(2, 3)))))
    maps = found[0].double()
    weights = sign * (model.last.weight[1].double() - model.last.weight[0].double())
    size = (image.shape[-2], image.shape[-1])
    stretched = upsample(maps, size)
    values = torch.einsum("p,phw->hw", weights, stretched)
    similarities = maps.amax(dim=(1, 2)).tolist()
    records = model.sources.records or (None,) * len(maps)
    images = list(model.sources.pixels.cpu().numpy()) or [None] * len(maps)
    drawn = stretched.float().cpu().numpy()
    resemblances = tuple(
        Resemblance(
            number,
            label,
            similarity,
            weight,
            find_box(drawn[number], config.percentile),
            drawn[number],
            records[number],
            images[number],
        )
        for number, (label, similarity, weight) in enumerate(
            zip(model.prototype_class.tolist(), similarities, weights.tolist(), strict=True)
        )
    )
    shown = np.round(image[0].permute(1, 2, 0).double().cpu().numpy() * 255).astype(np.uint8)
    return Found(values, ThisLooksLikeThat(shown, target, logit, resemblances, config.shown))


# ------------------------------------------------------------ pictures


def frame(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Draw a box into an image: (h, w, 1 or 3) -> (h, w, 3)."""
    picture = np.broadcast_to(image, (*image.shape[:2], 3)).copy()
    x, y, width, height = box
    line = max(1, round(max(image.shape[:2]) / 100))
    inner = np.zeros(image.shape[:2], bool)
    inner[y + line : y + height - line, x + line : x + width - line] = True
    outer = np.zeros(image.shape[:2], bool)
    outer[y : y + height, x : x + width] = True
    picture[outer & ~inner] = _FRAME
    return picture


def cut(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Cut a box out of an image: (h, w, C) -> (height, width, C)."""
    x, y, width, height = box
    return image[y : y + height, x : x + width]


def _colour(
    of: ThisLooksLikeThat, one: Resemblance, limits: tuple[float, float]
) -> NDArray[np.uint8]:
    """Draw similarities over the image; one scale for all prototypes."""
    low, high = limits
    colours = matplotlib.colormaps["RdYlBu_r"]((one.values - low) / (high - low))[..., :3]
    mixed = OPACITY * colours * 255 + (1 - OPACITY) * of.image
    return np.asarray(np.round(mixed).astype(np.uint8))


METHOD = Method(find_prototypes, PrototypeSettings, models=(ProtoPNet,))
