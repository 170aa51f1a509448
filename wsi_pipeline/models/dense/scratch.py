"""Memory that is used again for every block: fresh pages cost as much as the sums on them."""

from collections.abc import Hashable
from math import prod

import torch
from torch import Tensor


class Scratch:
    """Tensors by name; asking for a name again gives the same memory, with what is left in it."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def take(self, name: Hashable, like: Tensor, *shape: int) -> Tensor:
        """Return an uninitialised tensor of this shape, of the dtype and device of `like`."""
        size = prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.zeros(size, dtype=like.dtype, device=like.device)
        return held[:size].view(shape)
