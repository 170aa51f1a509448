"""Losses of a training: computed by its course, exchanged by its processes, fetched in bunches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsi_pipeline.training import processes
from wsi_pipeline.training.course import Course

FETCHED_EVERY = 32  # steps, on a GPU, where each fetch waits for the steps before


class CourseLoss(nn.Module):
    """A course's loss as a module, for `DistributedDataParallel` to wrap."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self.model = course.model
        self._loss = course.loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch; of an empty one 0, with zeros as gradients."""
        if not len(y):
            trained = (p.flatten()[:1] for p in self.parameters() if p.requires_grad)
            return torch.cat(list(trained)).float().sum() * 0
        return self._loss(x, y)


class Losses:
    """Losses of an epoch, fetched from the device some at a time: it never waits in between.

    They are added up in float64 on the CPU, since not every device has it.

    Parameters
    ----------
    device : torch.device
        Of the losses.
    every : int
        Steps.

    Attributes
    ----------
    values : list of float
        Those fetched so far, summed over the processes.
    """

    def __init__(self, device: torch.device, *, every: int) -> None:
        self.values: list[float] = []
        self._device = device
        self._every = every
        self._waiting: list[Tensor] = []

    def add(self, parts: Tensor) -> Sequence[float]:
        """Note the parts of a process's loss, (n,); return the losses that are fetched by it."""
        self._waiting.append(parts)
        return self.fetch() if len(self._waiting) >= self._every else ()

    def fetch(self) -> Sequence[float]:
        """Fetch what is waiting."""
        if not self._waiting:
            return ()
        values = torch.cat(self._waiting).cpu().tolist()
        own = []
        for parts in self._waiting:
            own.append(sum(values[: len(parts)], start=0.0))
            del values[: len(parts)]
        found = processes.sum_losses(own, self._device)
        self._waiting.clear()
        self.values += found
        return found
