"""Patches as views of shared pixels: neighbours that overlap hold each pixel once."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PatchViews:
    """Some patches, or images, of one shape in one piece of memory.

    ``len(views)`` is their number, ``views[a:b]`` some of them, of the same memory.
    """

    memory: Tensor  # (n_bytes,) uint8
    first: NDArray[np.int64]  # (n,) byte of a patch's first pixel
    pitch: NDArray[np.int64]  # (n,) bytes from a row of pixels to the next
    shape: tuple[int, ...]  # of a patch: (height, width, channels)

    @classmethod
    def of(cls, pixels: Tensor) -> Self:
        """Describe separate patches, (n, H, W, C) uint8 and contiguous."""
        n, height, width, channels = pixels.shape
        first = np.arange(n, dtype=np.int64) * height * width * channels
        pitch = np.full(n, width * channels, np.int64)
        return cls(pixels.reshape(-1), first, pitch, (height, width, channels))

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, chosen: slice | NDArray[np.bool_]) -> Self:
        return replace(self, first=self.first[chosen], pitch=self.pitch[chosen])

    def to(self, device: torch.device) -> Self:
        """Move the shared pixels, once; without waiting where they are pinned."""
        return replace(self, memory=self.memory.to(device, non_blocking=True))

    def floats(self, out: Tensor | None = None) -> Tensor:
        """Make a model's input of the patches, on the device where they are.

        Parameters
        ----------
        out : (n, H, W, C) float32, optional
            Memory for the result; fresh memory takes a CPU two to four times as long.

        Returns
        -------
        x : (n, C, H, W) float32 in [0, 1]
            Channels last in memory, as convolutions like it.
        """
        if out is None:
            out = torch.empty((len(self), *self.shape), device=self.memory.device)
        if self.memory.device.type == "cpu":
            self._fill_by_numpy(out.numpy())
        else:
            self._fill_by_torch(out)
        return out.permute(0, 3, 1, 2)

    def _fill_by_numpy(self, out: NDArray[np.float32]) -> None:
        # Image by image, so that each stays in the cache; in this thread alone: PyTorch's threads
        # would wait for each other while others read.
        memory, channels = self.memory.numpy(), self.shape[2]
        for place, (first, pitch) in enumerate(
            zip(self.first.tolist(), self.pitch.tolist(), strict=True)
        ):
            patch = as_strided(memory[first:], self.shape, (pitch, channels, 1), writeable=False)
            np.divide(patch, np.float32(255), out=out[place], dtype=np.float32)

    def _fill_by_torch(self, out: Tensor) -> None:
        """Convert patches that follow each other at equal distances in one operation."""
        channels = self.shape[2]
        for start, stop, step in _even_runs(self.first, self.pitch):
            strides = (step, int(self.pitch[start]), channels, 1)
            size = (stop - start, *self.shape)
            out[start:stop] = self.memory.as_strided(size, strides, int(self.first[start]))
        out.div_(255.0)


def _even_runs(first: NDArray[np.int64], pitch: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Cut patches into runs of one pitch and one distance: (start, stop, bytes between)."""
    steps, same = np.diff(first), np.diff(pitch) == 0
    runs, start = [], 0
    while start < len(first):
        stop, step = start + 1, 0
        if stop < len(first) and same[start]:
            step = int(steps[start])
            while stop < len(first) and same[stop - 1] and steps[stop - 1] == step:
                stop += 1
        runs.append((start, stop, step))
        start = stop
    return runs
