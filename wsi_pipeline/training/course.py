"""The course of a training around its passes over the patches: optimiser, rates, loss, extra steps.

`wsi_pipeline.training.loop` draws, validates and records in the same way for every model; what an
architecture does differently is in a subclass of `Course`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.contracts import PatchOrigin
from wsi_pipeline.config.settings import TrainConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.training.history import EpochRecord
from wsi_pipeline.training.recipe import build_optimizer, build_scheduler


@dataclass(frozen=True)
class TrainingPatches:
    """Some of the training patches, without augmentation."""

    x: Tensor  # (n, C, H, W) float32 in [0, 1], on the device; readable ones alone
    label: NDArray[np.int8]  # (n,)
    row: NDArray[np.int64]  # (n,) number of each
    locate: Callable[[int], PatchOrigin]  # from its number


# Reads at most so many (None: all) training patches in batches, always in the same order.
ReadTraining = Callable[[int | None], Iterator[TrainingPatches]]


class Course:
    """One optimiser from beginning to end, the model's own loss, and nothing else.

    Attributes
    ----------
    optimizer : torch.optim.Optimizer
        Of the current epoch.
    """

    optimizer: torch.optim.Optimizer
    model: PatchClassifier

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Refuse settings that have no effect or contradict each other.

        Raises
        ------
        ConfigError
        """
        if config.protopnet is not None:
            raise ConfigError(
                f"{config.model.name}: the settings under protopnet are of the model protopnet, "
                f"not of {config.model.name}; leave them out, or set model.name: protopnet"
            )

    def __init__(self, config: TrainConfig, model: PatchClassifier) -> None:
        self.check(config)
        self.config = config
        self.model = model
        self.optimizer = build_optimizer(config, model)
        self._scheduler = build_scheduler(config, self.optimizer)

    def begin(self, epoch: int) -> None:
        """Prepare the model and the optimiser for an epoch (from 1), or as they were in one."""

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """Prepare the optimiser for a step, counted from 0 over all epochs."""

    def has_even_pace(self, epoch: int) -> bool:
        """Return whether the steps of an epoch take as long as those of later ones."""
        return True

    def set_training(self) -> None:
        """Put the model into training mode."""
        self.model.train()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch: (B, C, H, W) and (B,) -> scalar."""
        return self.model.loss(x, y)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of images, for validation: (B, C, H, W) -> (B,)."""
        logits: Tensor = self.model(x)
        return logits

    def end(self, epoch: int, read: ReadTraining) -> str:
        """Do what follows the pass of an epoch, before validation; return a note, or ``""``."""
        return ""

    def adapt(self, record: EpochRecord) -> None:
        """Adapt the learning rate to the validation."""
        if self._scheduler is not None and record.val_loss is not None:
            self._scheduler.step(record.val_loss)

    def may_keep(self, epoch: int) -> bool:
        """Return whether the weights after this epoch may be the ones that are kept."""
        return True

    def finish(self, epoch: int, read: ReadTraining, out: Path) -> tuple[list[str], bool]:
        """Complete the model, which holds the kept weights, of an epoch.

        Returns
        -------
        files : list of str
            Names of further outputs, written into `out`.
        changed : bool
            Whether the model is another than after that epoch.
        """
        return [], False
