"""Where the prototypes of a network come from: parts of training images, kept with the weights.

A checkpoint then shows what its prototypes look like without the slides or images.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.prototype_boxes import Box


@dataclass(frozen=True)
class PrototypeSource:
    """The part of a training image that one prototype is."""

    source_id: str  # of the image, or of the slide
    row: int  # of the patch in the slide's store, or of the image among the run's
    position: tuple[int, int]  # row, column among the latent vectors
    box_px: Box  # of the image as the model sees it
    box_l0: Box | None = None  # the same on the slide, level-0 px; None: single images


class PrototypeSources(nn.Module):
    """The sources of all prototypes, as buffers; none before the first push.

    Attributes
    ----------
    pixels : (P, h, w, C) uint8
        The images that prototypes are of, as the model sees them: cropped, not normalised.
    text : (bytes,) uint8
        JSON of the records.
    """

    pixels: Tensor
    text: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pixels", torch.zeros(0, 0, 0, 3, dtype=torch.uint8))
        self.register_buffer("text", torch.zeros(0, dtype=torch.uint8))

    @property
    def records(self) -> tuple[PrototypeSource, ...]:
        """One for each prototype, in their order, or none."""
        if not self.text.numel():
            return ()
        return tuple(
            PrototypeSource(
                one["source_id"],
                one["row"],
                (one["position"][0], one["position"][1]),
                _as_box(one["box_px"]),
                None if one["box_l0"] is None else _as_box(one["box_l0"]),
            )
            for one in json.loads(self.text.cpu().numpy().tobytes())
        )

    def set(self, records: Sequence[PrototypeSource], pixels: NDArray[np.uint8]) -> None:
        """Replace all sources.

        Parameters
        ----------
        records : sequence of PrototypeSource
            One for each prototype, in their order.
        pixels : (P, h, w, C) uint8
            The whole images that they are parts of, as the model sees them.

        Raises
        ------
        ModelError
            If the numbers differ, or pixels are not as above.
        """
        shape = pixels.shape
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != len(records):
            raise ModelError(
                f"{len(records)} prototypes need images (P, h, w, C) uint8 that they come from, "
                f"got {shape} {pixels.dtype}"
            )
        text = json.dumps([asdict(one) for one in records], sort_keys=True).encode()
        device = self.text.device
        self.text = torch.from_numpy(np.frombuffer(text, np.uint8).copy()).to(device)
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)

    def keep(self, kept: Tensor) -> None:
        """Drop those of dropped prototypes: (P,) bool."""
        if records := self.records:
            mask = kept.cpu().numpy()
            chosen = [one for one, stays in zip(records, mask, strict=True) if stays]
            self.set(chosen, self.pixels.cpu().numpy()[mask])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        # Their sizes are known only from what is loaded.
        for name in ("pixels", "text"):
            found = state_dict.get(f"{prefix}{name}")
            if isinstance(found, Tensor):
                own = getattr(self, name)
                setattr(self, name, torch.empty(found.shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *others, **named)


def _as_box(values: Sequence[int]) -> Box:
    x, y, width, height = values
    return x, y, width, height
