"""The push of a ProtoPNet: each prototype becomes the nearest part of a training image.

References
----------
.. [1] Chen, Li, Tao, Barnett, Su, Rudin, "This Looks Like That: Deep Learning for Interpretable
   Image Recognition", NeurIPS 2019, section 2.2, stage 2.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.contracts import PatchOrigin
from wsi_pipeline.errors import TrainingError
from wsi_pipeline.models.preprocess import crop_centre
from wsi_pipeline.models.protopnet import ProtoPNet
from wsi_pipeline.models.prototype_boxes import Box, find_box, upsample
from wsi_pipeline.models.prototype_sources import PrototypeSource
from wsi_pipeline.training.course import TrainingPatches

# Squared distance of a pushed prototype to its own patch, computed again. float32 keeps latent
# vectors exactly, so what is above is a network that gives other values each time.
LARGEST_ERROR = 1e-5


@dataclass(frozen=True)
class _Nearest:
    """A part of an image, as near to a prototype as any before."""

    distance: float  # squared
    vector: Tensor  # (D,) latent
    position: tuple[int, int]  # row, column
    image: Tensor  # (C, H, W) float in [0, 1], whole
    origin: PatchOrigin


@torch.no_grad()
def push_prototypes(model: ProtoPNet, batches: Iterable[TrainingPatches]) -> NDArray[np.float64]:
    """Replace each prototype by the nearest latent vector of the images of its class.

    Sources, which `model.sources` then holds, have the paper's box: around the pixels of at least
    the 95th percentile of the upsampled similarity.

    Parameters
    ----------
    model : ProtoPNet
        In evaluation mode.
    batches : iterable of TrainingPatches
        The images; of equal distances the first in their order is taken, and in it the first
        position by rows.

    Returns
    -------
    moved : (P,)
        Squared distance of each prototype from what it was.

    Raises
    ------
    TrainingError
        If a class has no image, or a distance is not finite.
    """
    found: list[_Nearest | None] = [None] * len(model.prototype_class)
    for batch in batches:
        _look_through(model, batch, found)
    nearest = [one for one in found if one is not None]
    if len(nearest) < len(found):
        raise TrainingError(
            "no readable training image of a class, or distances to prototypes that are not "
            "finite: prototypes cannot be pushed; check the files, or lower the learning rate"
        )
    vectors = torch.stack([one.vector for one in nearest])
    model.prototypes.copy_(vectors[:, :, None, None])
    seen = [_crop(model, one.image) for one in nearest]
    records = [
        _describe(model, number, one, image)
        for number, (one, image) in enumerate(zip(nearest, seen, strict=True))
    ]
    pixels = (torch.stack(seen) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    model.sources.set(records, pixels.cpu().numpy())
    return np.array([one.distance for one in nearest])


def _look_through(model: ProtoPNet, batch: TrainingPatches, found: list[_Nearest | None]) -> None:
    z = model.latent(batch.x)
    columns = z.shape[3]
    flat = z.double().flatten(2)  # (n, D, h * w)
    for number, label in enumerate(model.prototype_class.tolist()):
        images = np.flatnonzero(batch.label == label)
        if not len(images):
            continue
        # Not by the convolution's three terms, so that a vector is at distance 0 to itself alone.
        prototype = model.prototypes[number].double().flatten()[:, None]
        distances = (flat[images] - prototype).square().sum(dim=1)  # (images, h * w)
        at = int(distances.argmin())  # the first of equals
        distance = float(distances.flatten()[at])
        best = found[number]
        if distance < (math.inf if best is None else best.distance):
            image, place = divmod(at, distances.shape[1])
            index = int(images[image])
            row, column = divmod(place, columns)
            found[number] = _Nearest(
                distance,
                z[index, :, row, column].clone(),
                (row, column),
                batch.x[index].clone(),
                batch.locate(int(batch.row[index])),
            )


def _crop(model: ProtoPNet, image: Tensor) -> Tensor:
    """Cut out what the network sees of an image: (C, H, W) -> (C, h, w)."""
    crop = None if model.preprocess is None else model.preprocess.config.crop
    return image if crop is None else crop_centre(image, crop)


def _describe(model: ProtoPNet, number: int, one: _Nearest, seen: Tensor) -> PrototypeSource:
    size = (seen.shape[-2], seen.shape[-1])
    similarities = model.similarity_maps(one.image[None])[0, number]
    box = find_box(upsample(similarities[None], size)[0].cpu().numpy())
    before = ((one.image.shape[-1] - size[1]) // 2, (one.image.shape[-2] - size[0]) // 2)
    return PrototypeSource(
        one.origin.source_id, one.origin.row, one.position, box, _on_slide(box, before, one.origin)
    )


def _on_slide(box: Box, before: tuple[int, int], origin: PatchOrigin) -> Box | None:
    """Convert a box in what is seen of a patch, which starts at `before` (x, y), to level-0 px."""
    if origin.corner is None:
        return None
    starts = [corner + scale * (start + offset) for corner, scale, start, offset
              in zip(origin.corner, origin.scale, box[:2], before, strict=True)]  # fmt: skip
    sides = [scale * side for scale, side in zip(origin.scale, box[2:], strict=True)]
    return round(starts[0]), round(starts[1]), max(1, round(sides[0])), max(1, round(sides[1]))


@torch.no_grad()
def measure_distances(
    model: ProtoPNet, batches: Iterable[TrainingPatches]
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Measure the smallest squared distance of each image to each prototype.

    Parameters
    ----------
    model : ProtoPNet
        In evaluation mode.
    batches : iterable of TrainingPatches

    Returns
    -------
    distances : (N, P)
    labels : (N,)
    """
    distances = [np.empty((0, len(model.prototype_class)))]
    labels = [np.empty(0, np.int8)]
    for batch in batches:
        distances.append(model.distances(batch.x).amin(dim=(2, 3)).double().cpu().numpy())
        labels.append(batch.label)
    return np.concatenate(distances), np.concatenate(labels)


def check_push(
    distances: NDArray[np.float64], labels: NDArray[np.int8], classes: NDArray[np.int64]
) -> None:
    """Check that each prototype is a part of an image of its class.

    Parameters
    ----------
    distances : (N, P)
        As `measure_distances` returns them after a push, of the same images.
    labels : (N,)
    classes : (P,)
        Of the prototypes.

    Raises
    ------
    TrainingError
        If one is further than `LARGEST_ERROR` from all images of its class.
    """
    own = np.where(labels[:, None] == classes, distances, np.inf).min(axis=0)
    if not (own <= LARGEST_ERROR).all():
        raise TrainingError(
            f"prototype {int(own.argmax())} is at a squared distance of {own.max():.3g} from the "
            f"patch that it was pushed to, above {LARGEST_ERROR:g}: this device computes other "
            "values each time; set train.<model>.determinism=strict to find the operation"
        )
