"""Training: patch stores in, a checkpoint and its history out.

Three-step draws, read ahead by background threads; after each epoch the validation loss E steers
the learning rate and the monitored figure decides when to stop. The best epoch's weights are
kept. On one device the same settings give the same weights, killed and resumed or not.

References
----------
.. [1] specs/models.md, 1.1 and 1.2 (PatchNet), 1.9 (VGG16 and its optimiser), 1.10 (sampling).
"""

import csv
import dataclasses
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from tiling.files import digest_json, remove_leftovers, write_json, write_text
from wsi_pipeline.augment import Augment
from wsi_pipeline.checkpoint import CheckpointMeta, save_checkpoint
from wsi_pipeline.config import as_plain
from wsi_pipeline.curves import draw_curves
from wsi_pipeline.data import (
    CLASS_NAMES,
    Batch,
    Patches,
    check_stores,
    choose_validation,
    load_batch,
    prefetch,
    to_unit_range,
    usable_labels,
)
from wsi_pipeline.devices import place_model, reproducible
from wsi_pipeline.errors import ConfigError, ModelError, TrainingError
from wsi_pipeline.history import (
    EpochRecord,
    best_epoch,
    describe_validation,
    stop_reason,
    write_history,
)
from wsi_pipeline.models import PatchClassifier, build_model
from wsi_pipeline.models.vgg import load_imagenet_weights
from wsi_pipeline.resume import (
    ResumeState,
    Tensors,
    optimizer_tensors,
    read_resume,
    restore_optimizer,
    write_resume,
)
from wsi_pipeline.sampling import ThreeStepSampler
from wsi_pipeline.settings import TrainConfig
from wsi_pipeline.versions import versions

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, Any]], None]

CHECKPOINT_FILE = "checkpoint.safetensors"
RESUME_FILE = "resume.safetensors"


@dataclass(frozen=True)
class TrainSummary:
    """How a training went."""

    checkpoint: Path
    epochs: int  # done in all
    resumed_from: int  # epochs done by an earlier, interrupted training
    best: EpochRecord  # the epoch whose weights are kept
    stopped: str  # why, in words
    seconds: float  # of this process

    def __str__(self) -> str:
        again = f" (resumed after {self.resumed_from})" if self.resumed_from else ""
        return (
            f"{self.epochs} epochs{again} in {self.seconds:.0f} s, {self.stopped}; kept epoch "
            f"{self.best.epoch}: {describe_validation(self.best)}"
        )


def train_model(
    config: TrainConfig,
    *,
    train: Sequence[Patches],
    val: Sequence[Patches],
    patients: Mapping[str, str],
    out: Path,
    device: torch.device,
    fingerprint: str,
    readers: int = 2,
    on_progress: Progress | None = None,
) -> TrainSummary:
    """Train a model, or go on with a training of the same settings that was interrupted.

    Parameters
    ----------
    config : TrainConfig
    train, val : patch stores
        Of one patch size and resolution. Patches of label -1 and unreadable ones are left out.
    patients : patient by slide_id
        Kept in the checkpoint, so that no one tests the model on them unawares.
    out : Path
        Gets ``checkpoint.safetensors`` (last), ``config.json``, ``history.csv``, ``draws.csv`` and
        ``curves.png``; meanwhile ``resume.safetensors``.
    device : torch.device
    fingerprint : str
        Of the settings and inputs: an interrupted training of another one is not resumed.
    readers : int
        Threads that read batches ahead; they do not change the result.
    on_progress : function, optional
        Called after each batch with batches done, batches at most, and a dict of epoch and loss.

    Raises
    ------
    ConfigError
        If a setting is out of its range.
    TrainingError
        If a split lacks a class, patches do not fit together, a patient is in both splits, or the
        loss stops being a number. ``val`` is not looked at where nothing is monitored.
    """
    started = time.perf_counter()
    check_config(config)
    val = () if config.monitor == "none" else val
    check_stores(train, val, patients, validated=config.monitor != "none")
    remove_leftovers(out)
    with reproducible(device, seed=config.seed or 0):
        training = _Training(config, train, val, device=device, readers=readers)
        key = _resume_key(config, train, val, fingerprint)
        resumed_from = training.restore(read_resume(out / RESUME_FILE, key=key))
        if resumed_from:
            log.info("%s: going on after epoch %d", config.model.name, resumed_from)
        else:
            (out / CHECKPOINT_FILE).unlink(missing_ok=True)  # of other settings or inputs
        while (stopped := training.stop_reason()) is None:
            training.run_epoch(on_progress)
            write_resume(out / RESUME_FILE, training.state(), key=key)
            write_history(out / "history.csv", training.history)
        meta = _describe(config, training, train, val, patients, fingerprint)
        _write_outputs(out, config, training, meta)
    (out / RESUME_FILE).unlink(missing_ok=True)
    return TrainSummary(
        checkpoint=out / CHECKPOINT_FILE,
        epochs=len(training.history),
        resumed_from=resumed_from,
        best=training.best,
        stopped=stopped,
        seconds=time.perf_counter() - started,
    )


def check_config(config: TrainConfig) -> None:
    """Refuse settings that no training can follow.

    Raises
    ------
    ConfigError
        Naming the setting, its value and what would be right.
    """
    least = {"batch_size": 1, "steps_per_epoch": 1, "max_epochs": 1, "patience": 1}
    least |= {"lr_halve_after": 1, "val_patches": 2, "seed": 0}
    for name, minimum in least.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise ConfigError(f"train: {name} must be at least {minimum}, got {value}")
    if not (0 < config.lr < math.inf):
        raise ConfigError(f"train: lr must be above 0, got {config.lr}")


class _Training:
    """A model, its optimiser, its draws and its history, as they stand after some epochs."""

    def __init__(
        self,
        config: TrainConfig,
        train: Sequence[Patches],
        val: Sequence[Patches],
        *,
        device: torch.device,
        readers: int,
    ) -> None:
        self._config = config
        self._seed = config.seed or 0
        self._train = train
        self._val = val
        self._device = device
        self._readers = readers
        self.model = build_classifier(config, device)
        self._optimizer = build_optimizer(config, self.model)
        self._scheduler = build_scheduler(config, self._optimizer)
        self._sampler = ThreeStepSampler([usable_labels(s) for s in train], seed=self._seed)
        if val:
            self._chosen = choose_validation(
                [usable_labels(s) for s in val], most=config.val_patches, seed=self._seed
            )
        self.history: list[EpochRecord] = []
        self.drawn = np.zeros((len(train), 2), np.int64)
        self.best_weights: Tensors = {}

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights are kept."""
        return self.history[best_epoch(self.history, self._config.monitor) - 1]

    def stop_reason(self) -> str | None:
        """Why training ends here; None if it goes on."""
        config = self._config
        return stop_reason(
            self.history,
            monitor=config.monitor,
            patience=config.patience,
            max_epochs=config.max_epochs,
        )

    def state(self) -> ResumeState:
        """All that a later process needs to go on from here."""
        return ResumeState(
            history=self.history,
            sampler=self._sampler.state(),
            drawn=self.drawn,
            weights=self.model.state_dict(),
            best=self.best_weights,
            optimizer=optimizer_tensors(self._optimizer),
        )

    def restore(self, state: ResumeState | None) -> int:
        """Go on from an earlier state; returns how many epochs are done already."""
        if state is None:
            return 0
        self.model.load_state_dict(state.weights)
        self.best_weights = state.best
        restore_optimizer(self._optimizer, state.optimizer)
        self._sampler.set_state(state.sampler)
        self.drawn = state.drawn
        self.history = state.history
        for record in self.history:  # the learning rate follows from the losses
            self._adapt_rate(record)
        return len(self.history)

    def run_epoch(self, on_progress: Progress | None) -> None:
        """Train one epoch, validate, and note what came out."""
        epoch = len(self.history) + 1
        lr = float(self._optimizer.param_groups[0]["lr"])
        train_loss = self._train_once(epoch, on_progress)
        val_loss, val_roc_auc = self.validate(epoch) if self._val else (None, None)
        record = EpochRecord(epoch, lr, train_loss, val_loss, val_roc_auc)
        self.history.append(record)
        self._adapt_rate(record)
        if self.best is record:  # compared with all epochs before
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        log.info(
            "%s: epoch %d of at most %d: lr %.3g, loss %.4f, %s",
            self._config.model.name,
            epoch,
            self._config.max_epochs,
            lr,
            train_loss,
            describe_validation(record),
        )

    def _adapt_rate(self, record: EpochRecord) -> None:
        if self._scheduler is not None and record.val_loss is not None:
            self._scheduler.step(record.val_loss)

    def _train_once(self, epoch: int, on_progress: Progress | None) -> float:
        config = self._config
        # Seeded by the epoch, not by what came before: an epoch done again is the same epoch.
        seed = epoch_seed(self._seed, epoch)
        torch.manual_seed(seed)
        augment = Augment(config.augment, seed=seed, crop=config.model.preprocess.crop)
        steps, size = config.steps_per_epoch, config.batch_size
        slide, patch, label = self._sampler.draw(steps * size)
        self.model.train()
        losses: list[float] = []
        for step, batch in enumerate(self._batches(self._train, slide, patch)):
            y = label[step * size : (step + 1) * size][batch.readable]
            if len(y):
                samples = step * size + np.flatnonzero(batch.readable)
                x = augment(to_unit_range(batch.pixels, self._device), samples)
                losses.append(self._step(x, y, epoch))
            if on_progress:
                done = (epoch - 1) * steps + step + 1
                info = {"epoch": epoch, "loss": losses[-1] if losses else None}
                on_progress(done, config.max_epochs * steps, info)
        if not losses:
            raise TrainingError(
                f"{config.model.name}: not one of the {len(label)} patches drawn in epoch {epoch} "
                "could be read; check the slide files"
            )
        np.add.at(self.drawn, (slide, label.astype(np.int64)), 1)
        return math.fsum(losses) / len(losses)

    def _step(self, x: Tensor, label: NDArray[np.int8], epoch: int) -> float:
        y = torch.from_numpy(label.astype(np.float32)).to(self._device)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.model.loss(x, y)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the training loss became {value}", epoch)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return value

    @torch.no_grad()
    def validate(self, epoch: int) -> tuple[float, float]:
        """Give the validation loss E (mean cross-entropy) and the ROC AUC."""
        slide, patch, label = self._chosen
        self.model.eval()
        logits: list[Tensor] = []
        readable: list[NDArray[np.bool_]] = []
        for batch in self._batches(self._val, slide, patch):
            readable.append(batch.readable)
            if batch.readable.any():
                x = to_unit_range(batch.pixels, self._device)
                logits.append(self.model(x).double().cpu())
        y = label[np.concatenate(readable)]
        if len(np.unique(y)) < len(CLASS_NAMES):
            raise TrainingError(
                f"{self._config.model.name}: of the {len(label)} validation patches those of one "
                "class cannot be read; check the slide files of split val"
            )
        return self._measure(torch.cat(logits), y, epoch)

    def _measure(self, logits: Tensor, label: NDArray[np.int8], epoch: int) -> tuple[float, float]:
        if not torch.isfinite(logits).all():
            raise self._diverged("an output for a validation patch became infinite or NaN", epoch)
        y = torch.from_numpy(label.astype(np.float64))
        loss = float(F.binary_cross_entropy_with_logits(logits, y))
        return loss, float(roc_auc_score(label, logits.numpy()))

    def _batches(
        self, stores: Sequence[Patches], slide: NDArray[np.int64], patch: NDArray[np.int64]
    ) -> Iterator[Batch]:
        size = self._config.batch_size
        pinned = self._device.type == "cuda"

        def load(start: int) -> Batch:
            rows = np.s_[start : start + size]
            return load_batch(stores, slide[rows], patch[rows], pinned=pinned)

        return prefetch(load, range(0, len(slide), size), threads=self._readers)

    def _diverged(self, what: str, epoch: int) -> TrainingError:
        return TrainingError(
            f"{self._config.model.name}: {what} in epoch {epoch}: training diverged; lower its "
            f"learning rate (lr, now {self._config.lr:g})"
        )


def build_classifier(config: TrainConfig, device: torch.device) -> PatchClassifier:
    """Build the model to train, in the layout that convolutions like.

    Raises
    ------
    ModelError
        If there is no such model or option, or the weights to start from do not fit.
    """
    name, weights = config.model.name, config.model.weights
    preprocess = dataclasses.asdict(config.model.preprocess)
    model = build_model(name, preprocess=preprocess, **config.model.options)
    if weights is not None:
        if not hasattr(model, "features"):
            raise ModelError(
                f"{name} cannot start from ImageNet weights ({weights.name}); they are for the VGG "
                "models: leave model.weights out"
            )
        load_imagenet_weights(model, weights)
    return place_model(model, device)


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser.

    The lecture's names are not torch's: its rho (0.9) is torch's `alpha`, and its alpha (0.9) is
    torch's `momentum` (specs/models.md 1.9).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
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

    Torch reduces when bad epochs exceed its patience, hence one less; any lower E counts as lower,
    hence the threshold of 0.
    """
    if config.lr_halve_after is None:
        return None
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=0.5, patience=config.lr_halve_after - 1, threshold=0.0
    )


def epoch_seed(seed: int, epoch: int) -> int:
    """Give an epoch its own seed."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _resume_key(
    config: TrainConfig, train: Sequence[Patches], val: Sequence[Patches], fingerprint: str
) -> str:
    stores = [[(s.info.slide_id, s.fingerprint) for s in split] for split in (train, val)]
    return digest_json([as_plain(config), stores, fingerprint])


def _describe(
    config: TrainConfig,
    training: _Training,
    train: Sequence[Patches],
    val: Sequence[Patches],
    patients: Mapping[str, str],
    fingerprint: str,
) -> CheckpointMeta:
    best = training.best
    ids = [tuple(s.info.slide_id for s in split) for split in (train, val)]
    groups = [tuple(sorted({patients[i] for i in split})) for split in ids]
    return CheckpointMeta(
        model=config.model.name,
        options=training.model.options,
        patch_px=train[0].geometry.patch_px,
        target_mpp=train[0].geometry.target_mpp,
        class_names=getattr(train[0], "class_names", CLASS_NAMES),
        image_shape=getattr(train[0], "image_shape", None),
        training=as_plain(config),
        fingerprint=fingerprint,
        versions=versions(),
        train_slides=ids[0],
        val_slides=ids[1],
        train_patients=groups[0],
        val_patients=groups[1],
        epoch=best.epoch,
        metrics={
            name: value
            for name, value in (("val_loss", best.val_loss), ("val_roc_auc", best.val_roc_auc))
            if value is not None
        },
    )


def _write_outputs(
    out: Path, config: TrainConfig, training: _Training, meta: CheckpointMeta
) -> None:
    """Write all that a training leaves; the checkpoint last, as the mark of a finished one."""
    write_history(out / "history.csv", training.history)
    write_json(out / "config.json", dataclasses.asdict(meta))
    slides = zip(meta.train_slides, training.drawn.tolist(), strict=True)
    write_draws(
        out / "draws.csv", [(i, y, n) for i, counts in slides for y, n in enumerate(counts)]
    )
    draw_curves(
        out / "curves.png", training.history, title=config.model.name, best=training.best.epoch
    )
    training.model.load_state_dict(training.best_weights)
    save_checkpoint(out / CHECKPOINT_FILE, training.model, meta)


def write_draws(path: Path, rows: Sequence[tuple[str, int, int]]) -> None:
    """Write ``draws.csv``: how many patches of each label training drew from each slide."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("slide_id", "label", "drawn"))
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
