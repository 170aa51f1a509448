"""Maps of frozen blocks, computed once per image."""

import hashlib

import torch
from torch import Tensor

from wsi_pipeline.models import BlockClassifier

MOST_BYTES = 2**30  # of memory; later images are computed each time


class FrozenMaps:
    """Maps of the frozen first blocks of a model, kept by the content of each image.

    On a CPU each image is computed by itself, so its maps have the same bits whether they were
    kept or not, and a resumed training continues exactly. On a GPU nothing is kept: hashing would
    take longer than the blocks.

    Parameters
    ----------
    model : BlockClassifier
    n_blocks : int
        First blocks, whose weights must not change.
    most_bytes : int
        Memory for kept maps.
    """

    def __init__(
        self, model: BlockClassifier, n_blocks: int, *, most_bytes: int = MOST_BYTES
    ) -> None:
        self._model = model
        self._n_blocks = n_blocks
        self._kept: dict[bytes, Tensor] = {}
        self._room = most_bytes

    def logits(self, x: Tensor, *, keep: bool) -> Tensor:
        """Return the logits of images, with gradients after the frozen blocks.

        Parameters
        ----------
        x : (B, C, H, W) float in [0, 1]
        keep : bool
            Keep the maps, since the same images come again.

        Returns
        -------
        logits : (B,)
        """
        with torch.no_grad():
            if not keep or x.device.type != "cpu":
                maps = self._model.encode(x, self._n_blocks)
            else:
                maps = torch.cat([self._look_up(image[None]) for image in x])
        return self._model.decode(maps, self._n_blocks)

    def _look_up(self, image: Tensor) -> Tensor:
        """Return the maps of one image, (1, C, H, W) -> (1, channels, h, w)."""
        image = image.clone(memory_format=torch.channels_last)  # bits depend on the layout
        digest = hashlib.blake2b(repr(tuple(image.shape)).encode(), digest_size=16)
        digest.update(image.permute(0, 2, 3, 1).contiguous().numpy().data)
        key = digest.digest()
        if key in self._kept:
            return self._kept[key]
        maps = self._model.encode(image, self._n_blocks)
        if maps.nbytes <= self._room:
            self._room -= maps.nbytes
            self._kept[key] = maps
        return maps
