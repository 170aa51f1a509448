"""Model, optimiser and learning-rate schedule of a training, from its settings.

References
----------
.. [1] Lecture on cancer detection in whole-slide images, "Training VGG16 on WSI": the network and
   its optimiser; docs/train.md maps its names to torch's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from wsi_pipeline.config.devices import place_model
from wsi_pipeline.config.settings import TrainConfig
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import PatchClassifier, build_model
from wsi_pipeline.models.pretrained import ImageNetModel, load_imagenet_weights


def build_classifier(config: TrainConfig, device: torch.device) -> PatchClassifier:
    """Build the model to train, in the channels-last layout.

    Raises
    ------
    ModelError
        If the model or an option is unknown, or the initial weights do not fit.
    """
    name, weights = config.model.name, config.model.weights
    preprocess = dataclasses.asdict(config.model.preprocess)
    model = build_model(name, preprocess=preprocess, **config.model.options)
    if weights is not None:
        if not hasattr(model, "features") and not isinstance(model, ImageNetModel):
            raise ModelError(
                f"{name} cannot start from ImageNet weights ({weights.name}); they are for the VGG "
                "and ResNet models: leave model.weights out"
            )
        load_imagenet_weights(model, weights)
    return place_model(model, device)


def build_optimizer(
    config: TrainConfig,
    model: torch.nn.Module,
    groups: Sequence[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """Build the optimiser.

    The lecture's names are not torch's: its rho (0.9) is torch's `alpha`, and its alpha (0.9) is
    torch's `momentum` (docs/train.md).

    Parameters
    ----------
    config : TrainConfig
    model : nn.Module
    groups : sequence of dicts, optional
        Parameters (``params``) with a learning rate and weight decay of their own (``lr``,
        ``weight_decay``). Default: all that are trained, in one group.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    parameters: Any = groups or trained
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, eps=config.eps)
    return torch.optim.RMSprop(
        parameters,
        lr=config.lr,
        alpha=config.rho,
        momentum=config.momentum,
        eps=config.eps,
        centered=False,
    )


def build_scheduler(
    config: TrainConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.ReduceLROnPlateau | None:
    """Halve the learning rate after `lr_halve_after` epochs in a row without a lower E, if at all.

    Torch reduces the rate when bad epochs exceed its patience, so the patience is one less. Any
    lower E counts as lower, so the threshold is 0.
    """
    if config.lr_halve_after is None:
        return None
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=0.5, patience=config.lr_halve_after - 1, threshold=0.0
    )
