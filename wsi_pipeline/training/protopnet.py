"""The course of a ProtoPNet's training: warm and joint epochs, pushes, last layer, pruning.

References
----------
.. [1] Chen, Li, Tao, Barnett, Su, Rudin, "This Looks Like That: Deep Learning for Interpretable
   Image Recognition", NeurIPS 2019, section 2.2 and supplement. Numbers that the paper does not
   give are those of its authors' code (docs/train.md).
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tiling.files import write_json
from tiling.wording import pluralize
from wsi_pipeline.config.devices import exact_fp32
from wsi_pipeline.config.settings import ProtoPNetConfig, TrainConfig, fine_tuning_settings
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.models.protopnet import ProtoPNet, similarity
from wsi_pipeline.training.course import Course, ReadTraining
from wsi_pipeline.training.history import EpochRecord
from wsi_pipeline.training.last_layer import LastLayerFit, fit_last_layer
from wsi_pipeline.training.outputs import PROTOTYPES_FILE, PRUNING_FILE
from wsi_pipeline.training.pruning import Judged, choose_kept
from wsi_pipeline.training.push import check_push, measure_distances, push_prototypes
from wsi_pipeline.training.recipe import build_optimizer

log = logging.getLogger(__name__)

SCHEMA = "wsi-pipeline/prototypes/1"


class ProtoPNetCourse(Course):
    """Three stages ([1], 2.2): learn with the last layer fixed; push; fit the last layer.

    Weights are kept only from epochs that end with a push, since only then prototypes are parts
    of training images.
    """

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Refuse settings that have no effect or contradict each other."""
        own = config.protopnet or ProtoPNetConfig()
        if problem := _find_problem(config, own):
            raise ConfigError(f"{config.model.name}: {problem}")

    def __init__(self, config: TrainConfig, model: PatchClassifier) -> None:
        self.check(config)
        if not isinstance(model, ProtoPNet):
            raise TypeError(f"the course of a ProtoPNet, given a {type(model).__name__}")
        if len(model.prototype_class.unique()) < 2:
            raise ModelError(
                "training a protopnet needs prototypes of both classes, got prototypes_per_class="
                f"{model.options['prototypes_per_class']}"
            )
        self.config = config
        self.model = self._network = model
        self._own = config.protopnet or ProtoPNetConfig()
        self._is_warm: bool | None = None
        self.begin(1)

    def begin(self, epoch: int) -> None:
        """Freeze what the epoch does not train; start the joint epochs with a fresh optimiser."""
        model = self._network
        is_warm = epoch <= self._own.warm_epochs
        model.requires_grad_(True)
        model.features.requires_grad_(not is_warm)
        model.last.requires_grad_(False)
        groups = self._groups(epoch)
        if is_warm is not self._is_warm:
            self.optimizer = build_optimizer(self.config, model, groups)
            self._is_warm = is_warm
        for old, new in zip(self.optimizer.param_groups, groups, strict=True):
            old["lr"] = new["lr"]

    def _groups(self, epoch: int) -> list[dict[str, Any]]:
        """Return the parameters that an epoch trains, with their rates and weight decays."""
        own, model = self._own, self._network
        joint = epoch - own.warm_epochs  # from 1
        parts: list[tuple[list[torch.nn.Parameter], float, float]] = [
            (list(model.add_on.parameters()), own.lr_add_on, own.weight_decay),
            ([model.prototypes], own.lr_prototypes, 0.0),
        ]
        if joint >= 1:
            parts.insert(0, (list(model.features.parameters()), self.config.lr, own.weight_decay))
        factor = own.lr_factor ** ((joint - 1) // own.lr_step) if joint >= 1 else 1.0
        return [
            {"params": parameters, "lr": rate * factor, "weight_decay": decay}
            for parameters, rate, decay in parts
        ]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return cross-entropy + 0.8 cluster cost - 0.08 separation cost ([1], 2.2)."""
        costs, own = measure_costs(self._network, x, y), self._own
        pull, push = own.cluster * costs.cluster, own.separation * costs.separation
        return costs.cross_entropy + pull - push

    def end(self, epoch: int, read: ReadTraining) -> str:
        """Push the prototypes and fit the last layer, in the epochs of a push."""
        if not self.may_keep(epoch):
            return ""
        model, most = self._network, self._own.push_patches
        log.info("%s: epoch %d: pushing prototypes", self.config.model.name, epoch)
        model.eval()
        with exact_fp32():
            moved = push_prototypes(model, read(most))
            distances, labels = measure_distances(model, read(most))
        check_push(distances, labels, model.prototype_class.cpu().numpy())
        fit = self._fit_last_layer(distances, labels)
        note = f"prototypes pushed by {np.sqrt(np.median(moved)):.3g} (median); {_describe(fit)}"
        log.log(
            logging.INFO if fit.converged else logging.WARNING,
            "%s: epoch %d: %s",
            self.config.model.name,
            epoch,
            note,
        )
        return note

    def adapt(self, record: EpochRecord) -> None:
        """Do nothing: the learning rates depend on the epoch alone."""

    def may_keep(self, epoch: int) -> bool:
        """Return whether the epoch ends with a push."""
        own = self._own
        return epoch >= own.push_from and (epoch - own.push_from) % own.push_every == 0

    def finish(self, epoch: int, read: ReadTraining, out: Path) -> tuple[list[str], bool]:
        """Prune where that is set, and write where the prototypes are from."""
        model = self._network
        model.eval()
        n_before = len(model.prototype_class)
        numbers = np.arange(n_before)
        files = [PROTOTYPES_FILE]
        (out / PRUNING_FILE).unlink(missing_ok=True)  # of an earlier training
        if self._own.prune:
            kept, judged = self._prune(read)
            numbers = np.flatnonzero(kept)
            write_csv(out / PRUNING_FILE, Judged.header(), [one.row() for one in judged])
            files.append(PRUNING_FILE)
        write_json(out / PROTOTYPES_FILE, describe_prototypes(model, numbers.tolist(), epoch))
        return files, len(numbers) < n_before

    def _prune(self, read: ReadTraining) -> tuple[NDArray[np.bool_], list[Judged]]:
        """Drop prototypes that are not of their class, and fit the last layer again."""
        model, own = self._network, self._own
        with exact_fp32():
            distances, labels = measure_distances(model, read(own.push_patches))
        classes = model.prototype_class.cpu().numpy()
        kept, judged = choose_kept(
            distances, labels, classes, nearest=own.prune_nearest, least=own.prune_least
        )
        dropped = pluralize(int((~kept).sum()), "prototype")
        if kept.all():
            log.info("%s: pruning dropped no prototype", self.config.model.name)
            return kept, judged
        model.keep(torch.from_numpy(kept))
        fit = self._fit_last_layer(distances[:, kept], labels)
        log.log(
            logging.INFO if fit.converged else logging.WARNING,
            "%s: pruning dropped %s of %d; %s",
            self.config.model.name,
            dropped,
            len(kept),
            _describe(fit),
        )
        return kept, judged

    def _fit_last_layer(
        self, distances: NDArray[np.float64], labels: NDArray[np.int8]
    ) -> LastLayerFit:
        model, own = self._network, self._own
        fit = fit_last_layer(
            similarity(torch.from_numpy(distances)).numpy(),
            labels,
            model.prototype_class.cpu().numpy(),
            model.last.weight.detach().double().cpu().numpy(),
            l1=own.l1,
            tolerance=own.tolerance,
            max_steps=own.solver_steps,
        )
        with torch.no_grad():
            model.last.weight.copy_(torch.from_numpy(fit.weights))
        return fit


@dataclass(frozen=True)
class Costs:
    """The parts of the loss of stage 1, means over a batch."""

    cross_entropy: Tensor
    cluster: Tensor  # squared distance to the nearest prototype of the own class
    separation: Tensor  # likewise of the other class


def measure_costs(model: ProtoPNet, x: Tensor, y: Tensor) -> Costs:
    """Measure what stage 1 minimises ([1], 2.2).

    Parameters
    ----------
    model : ProtoPNet
    x : (B, 3, H, W) float in [0, 1]
    y : (B,) 0 or 1
    """
    distances = model.distances(x).amin(dim=(2, 3))  # (B, P)
    is_own = model.prototype_class == y[:, None]
    nearest = [
        distances.masked_fill(other, torch.inf).amin(dim=1).mean() for other in (~is_own, is_own)
    ]
    logits = model.weigh(similarity(distances))
    return Costs(F.cross_entropy(logits, y.long()), nearest[0], nearest[1])


def describe_prototypes(model: ProtoPNet, before_pruning: list[int], epoch: int) -> dict[str, Any]:
    """Return the content of ``prototypes.json``: of which image each prototype is a part.

    Parameters
    ----------
    model : ProtoPNet
        After a push.
    before_pruning : (P,)
        Number of each prototype before some were dropped.
    epoch : int
        Of the push.
    """
    rows = zip(before_pruning, model.prototype_class.tolist(), model.sources.records, strict=True)
    prototypes = [
        {"prototype": number, "before_pruning": before, "class": label} | dataclasses.asdict(source)
        for number, (before, label, source) in enumerate(rows)
    ]
    return {"schema": SCHEMA, "epoch": epoch, "prototypes": prototypes}


def _find_problem(config: TrainConfig, own: ProtoPNetConfig) -> str:
    """Describe the first of the settings that cannot be; empty if all can."""
    if unused := fine_tuning_settings(config):
        return (
            f"{', '.join(unused)}: no effect on a protopnet, whose rates and frozen epochs are "
            "those of protopnet; leave that out"
        )
    epochs, first, every = config.max_epochs, own.push_from, own.push_every
    if epochs < first:
        return (
            f"max_epochs={epochs} ends before the first push (protopnet.push_from={first}), and "
            "weights are kept only after a push; raise max_epochs, or lower push_from"
        )
    if rest := (epochs - first) % every:
        return (
            f"max_epochs={epochs}, but the last push, after which weights can be kept, is in epoch "
            f"{epochs - rest}; set max_epochs to {epochs - rest} or {epochs - rest + every}"
        )
    if config.lr_halve_after is not None:
        return (
            f"lr_halve_after={config.lr_halve_after} has no effect: the rates fall every "
            "protopnet.lr_step joint epochs; set lr_halve_after to null"
        )
    if config.processes > 1:
        return (
            f"processes={config.processes}, but a protopnet is trained by one process, which sees "
            "all training patches in a push; set processes to 1"
        )
    if own.prune and own.prune_least > own.prune_nearest:
        return (
            f"protopnet.prune_least={own.prune_least} is more than prune_nearest="
            f"{own.prune_nearest}, so every prototype would be dropped; lower prune_least"
        )
    return ""


def _describe(fit: LastLayerFit) -> str:
    if fit.converged:
        return f"last layer: objective {fit.objective:.6g} after {pluralize(fit.steps, 'step')}"
    return f"{fit.reason} (objective {fit.objective:.6g})"
