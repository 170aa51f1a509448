"""Training: patch stores in, a checkpoint and its history out.

Patches are sampled in three steps and read ahead by background threads. After each epoch, the
validation loss E controls the learning rate and the monitored metric decides when to stop. The
best epoch's weights are kept. On one device the same settings give the same weights, also after an
interruption.

References
----------
.. [1] Lecture on cancer detection in whole-slide images, "Training VGG16 on WSI" and "Training
   data three step sampling": when the rate halves, when training stops, what is drawn.
.. [2] PatchNet papers 1 and 2 (see `wsi_pipeline.models.patchnet`): their settings are in
   `wsi_pipeline.config.settings.RECIPES`.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.contracts import CLASS_NAMES, OnProgress, StrPath
from tiling.files import remove_leftovers
from tiling.urls import local_path
from tiling.wording import pluralize
from wsi_pipeline.cohort.data import (
    Patches,
    check_stores,
    to_unit_range,
    usable_labels,
)
from wsi_pipeline.cohort.stain_view import normalise_patches
from wsi_pipeline.config.devices import (
    Precision,
    compute_in,
    reproducible,
    resolve_device,
    resolve_precision,
)
from wsi_pipeline.config.extras import require
from wsi_pipeline.config.reading import check_section
from wsi_pipeline.config.settings import TrainConfig
from wsi_pipeline.contracts import PrintLine, Rule
from wsi_pipeline.errors import TrainingError
from wsi_pipeline.models import check_image_size
from wsi_pipeline.training import processes
from wsi_pipeline.training.augment import Augment
from wsi_pipeline.training.batches import BatchReader
from wsi_pipeline.training.course import TrainingPatches
from wsi_pipeline.training.courses import choose_course
from wsi_pipeline.training.event_files import FOLDER as EVENTS_FOLDER
from wsi_pipeline.training.event_files import EventFiles, remove_event_files
from wsi_pipeline.training.history import (
    EpochRecord,
    best_epoch,
    describe_epoch,
    stop_reason,
    write_history,
)
from wsi_pipeline.training.losses import FETCHED_EVERY, CourseLoss, Losses
from wsi_pipeline.training.outputs import (
    CHECKPOINT_FILE,
    FURTHER,
    OUTPUTS,
    describe_training,
    write_ledger,
    write_outputs,
)
from wsi_pipeline.training.pace import Pace
from wsi_pipeline.training.recipe import build_classifier
from wsi_pipeline.training.resume import (
    ResumeState,
    Tensors,
    optimizer_tensors,
    read_resume,
    restore_optimizer,
    resume_key,
    write_resume,
)
from wsi_pipeline.training.rows import Rows
from wsi_pipeline.training.sampling import ShuffledSampler, ThreeStepSampler
from wsi_pipeline.training.summary import TrainSummary
from wsi_pipeline.training.validation import measure_validation

log = logging.getLogger(__name__)


RESUME_FILE = "resume.safetensors"
PREVIOUS_FILE = "previous.safetensors"  # an earlier checkpoint, until its successor is written


def train_model(
    config: TrainConfig,
    *,
    train: Sequence[Patches],
    val: Sequence[Patches] = (),
    patients: Mapping[str, str] | None = None,
    hard: Mapping[str, NDArray[np.bool_]] | None = None,
    out: StrPath,
    device: str | torch.device = "auto",
    fingerprint: str = "",
    readers: int = 2,
    on_progress: OnProgress | None = None,
    print_line: PrintLine | None = None,
    keep_state: bool = False,
) -> TrainSummary:
    """Train a model, or continue an interrupted training of the same settings.

    Parameters
    ----------
    config : TrainConfig
        `train_config` creates one from a model's recipe.
    train, val : patch stores
        All of one patch size and resolution. Patches of label -1 and unreadable ones are skipped.
        `val` may be empty if ``config.monitor`` is ``none``.
    patients : patient by slide_id, optional
        Stored in the checkpoint, so that later stages do not test the model on them. Default: each
        slide is its own patient.
    hard : mapping, optional
        Patches that were wrong before, by slide_id: (N,) bool. ``config.hard_share`` of the draws
        within a slide and class are from these, if there are any.
    out : str or path
        Folder, created if missing.
        Gets ``checkpoint.safetensors`` (last), ``config.json``, ``model_card.md``,
        ``history.csv``, ``draws.csv`` and ``curves.png``, of a ProtoPNet also ``prototypes.json``
        and, if pruned, ``pruning.csv``; meanwhile ``resume.safetensors``. With
        ``log="tensorboard"`` event files in ``tensorboard/``.
    device : str or torch.device
        ``auto`` (the first CUDA device, or the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
    fingerprint : str
        Of other inputs than settings and stores; an interrupted training with another fingerprint
        is not resumed.
    readers : int
        Threads that read batches ahead; does not affect the result.
    on_progress : function, optional
        Called after each batch with batches done and batches at most.
    print_line : function, optional
        Called with a line of text where an interrupted training continues, and after each epoch.
    keep_state : bool
        Keep ``resume.safetensors`` after the end; the caller removes it.

    Returns
    -------
    summary : TrainSummary
        ``checkpoint`` is the path of the checkpoint, which `predict` and `load_checkpoint` take.

    Raises
    ------
    ConfigError
        If a setting is out of its range, or the device is not available.
    ModuleNotFoundError
        If ``log`` is ``"tensorboard"`` without that package.
    TrainingError
        If a split lacks a class, stores differ in patch size or resolution, a patient is in both
        splits, or the loss becomes NaN or infinite. ``val`` is ignored if nothing is monitored.
    """
    started = time.perf_counter()
    out = local_path(out, "the output of training")
    if patients is None:
        patients = {store.slide_id: store.slide_id for store in (*train, *val)}
    device = resolve_device(device) if isinstance(device, str) else device
    check_section("train", config)
    config = replace(config, precision=_resolve_precision(config.precision, device))
    if config.log == "tensorboard":
        require("tensorboard")
    val = () if config.monitor == "none" else val
    check_stores(train, val, patients, validated=config.monitor != "none")
    check_image_size(config.model, train[0].kind.shape[:2])
    stain = config.model.preprocess.stain
    train, val = ([normalise_patches(store, stain) for store in split] for split in (train, val))
    writes = processes.rank() == 0

    def report(line: str) -> None:
        log.info("%s: %s", config.model.name, line)
        if print_line is not None:
            print_line(line)

    if writes:
        remove_leftovers(out)
    with reproducible(device, seed=config.seed or 0, strict=config.determinism == "strict"):
        training = _Training(config, train, val, hard=hard or {}, device=device, readers=readers)
        key = resume_key(config, train, val, hard or {}, fingerprint)
        resumed_from = training.restore(read_resume(out / RESUME_FILE, key=key))
        processes.wait_for_all()  # no process writes before all have read
        if resumed_from:
            report(f"resuming after epoch {resumed_from}/{config.max_epochs}")
        elif writes:
            if (out / CHECKPOINT_FILE).exists():  # of other settings or inputs
                (out / CHECKPOINT_FILE).replace(out / PREVIOUS_FILE)
                report(f"the earlier checkpoint is {PREVIOUS_FILE} until this training ends")
            for name in FURTHER:
                (out / name).unlink(missing_ok=True)
            remove_event_files(out / EVENTS_FOLDER)
        with contextlib.ExitStack() as stack:
            events = None
            if writes and config.log == "tensorboard":
                events = stack.enter_context(EventFiles(out / EVENTS_FOLDER, training.history))
            while (stopped := training.stop_reason()) is None:
                training.run_epoch(on_progress)
                report(training.describe_epoch())
                if writes:
                    write_resume(out / RESUME_FILE, training.state(), key=key)
                    write_history(out / "history.csv", training.history)
                    write_ledger(out / "draws.csv", training.drawn, train, patients)
                if events is not None:
                    events.add(training.history[-1])
        files = list(OUTPUTS)
        if writes:
            files += _finish(out, config, training, train, val, patients, fingerprint)
            if not keep_state:
                (out / RESUME_FILE).unlink(missing_ok=True)
    return TrainSummary(
        checkpoint=out / CHECKPOINT_FILE,
        epochs=len(training.history),
        resumed_from=resumed_from,
        best=training.best,
        stopped=stopped,
        seconds=time.perf_counter() - started,
        seconds_waited=training.reader.seconds_waited,
        files=tuple(out / name for name in files),
    )


def _resolve_precision(name: str, device: torch.device) -> Precision:
    """Resolve ``auto`` for training: bf16 on a GPU that has it, else fp32."""
    precision = resolve_precision(name, device)
    return "fp32" if name == "auto" and precision == "fp16" else precision


def _finish(
    out: Path,
    config: TrainConfig,
    training: "_Training",
    train: Sequence[Patches],
    val: Sequence[Patches],
    patients: Mapping[str, str],
    fingerprint: str,
) -> list[str]:
    """Complete the model and write all outputs; return the names of those of its own course."""
    files = training.finish(out)
    meta = describe_training(
        config,
        best=training.best,
        model=training.model,
        train=train,
        val=val,
        patients=patients,
        fingerprint=fingerprint,
    )
    write_ledger(out / "draws.csv", training.drawn, train, patients)
    write_outputs(
        out,
        config,
        meta,
        model=training.model,
        history=training.history,
        best=training.best,
    )
    (out / PREVIOUS_FILE).unlink(missing_ok=True)
    return files


class _Training:
    """State of a training: model, its course, sampler and history."""

    def __init__(
        self,
        config: TrainConfig,
        train: Sequence[Patches],
        val: Sequence[Patches],
        *,
        hard: Mapping[str, NDArray[np.bool_]],
        device: torch.device,
        readers: int,
    ) -> None:
        self._config = config
        self._seed = config.seed or 0
        self._train = train
        self._val = val
        self._device = device
        self.reader = BatchReader(device, threads=readers)
        self.model = build_classifier(config, device)
        self._course = choose_course(config)(config, self.model)
        self._precision = resolve_precision(config.precision, device)
        self._loss = processes.share_gradients(CourseLoss(self._course))
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._scaler.scale(
            torch.zeros((), device=device)
        )  # ready, should no patch be ours at first
        labels = [usable_labels(store) for store in train]
        self._sampler: ShuffledSampler | ThreeStepSampler
        if config.sampling == "shuffle":
            self._sampler = ShuffledSampler(labels, seed=self._seed)
            self._epoch_size = len(self._sampler)
        else:
            self._sampler = ThreeStepSampler(
                labels,
                seed=self._seed,
                hard=[hard.get(s.slide_id, np.zeros(len(s), np.bool_)) for s in train],
                hard_share=config.hard_share,
            )
            self._epoch_size = config.steps_per_epoch * config.batch_size
        if val:
            self._chosen = Rows.choose(val, config.val_patches, seed=self._seed)
        if config.stop_at_train_accuracy is not None:
            self._fitted = Rows.choose(train, config.val_patches, seed=self._seed)
        self._pace = Pace(config, device)
        self.history: list[EpochRecord] = []
        self._remeasured: EpochRecord | None = None  # the best epoch, with what `finish` changed
        self.drawn = np.zeros((len(train), 2), np.int64)
        self.best_weights: Tensors = {}

    @property
    def _candidates(self) -> list[EpochRecord]:
        """Epochs whose weights may be kept."""
        return [record for record in self.history if self._course.may_keep(record.epoch)]

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights are kept."""
        if self._remeasured is not None:
            return self._remeasured
        return self.history[best_epoch(self._candidates, self._config.monitor) - 1]

    def stop_reason(self) -> str | None:
        """Why training ends here; None if it continues."""
        config = self._config
        return stop_reason(
            self._candidates,
            monitor=config.monitor,
            patience=config.patience,
            max_epochs=config.max_epochs,
            train_accuracy=config.stop_at_train_accuracy,
        )

    def state(self) -> ResumeState:
        """State from which another process can continue."""
        return ResumeState(
            history=self.history,
            sampler=self._sampler.state(),
            drawn=self.drawn,
            weights=self.model.state_dict(),
            best=self.best_weights,
            optimizer=optimizer_tensors(self._course.optimizer),
            scaler=dict(self._scaler.state_dict()),
        )

    def restore(self, state: ResumeState | None) -> int:
        """Continue from an earlier state; return the number of completed epochs."""
        if state is None:
            return 0
        self.model.load_state_dict(state.weights)
        self.best_weights = state.best
        self._course.begin(len(state.history))
        restore_optimizer(self._course.optimizer, state.optimizer)
        if state.scaler:
            self._scaler.load_state_dict(state.scaler)
        self._sampler.set_state(state.sampler)
        self.drawn = state.drawn
        self.history = state.history
        for record in self.history:  # the learning rate follows from the losses
            self._course.adapt(record)
        return len(self.history)

    def run_epoch(self, on_progress: OnProgress | None) -> None:
        """Train one epoch, validate, and record the result."""
        epoch = len(self.history) + 1
        self._course.begin(epoch)
        lr = float(self._course.optimizer.param_groups[0]["lr"])
        started = time.perf_counter()
        train_loss = self._train_once(epoch, on_progress)
        seconds = round(time.perf_counter() - started, 3)
        note = self._course.end(epoch, self._read_training)
        accuracy = None
        if self._config.stop_at_train_accuracy is not None:
            accuracy = self._accuracy(self._fitted, epoch)
        record = EpochRecord(
            epoch, lr, train_loss, None, None, accuracy, note=note, seconds=seconds
        )
        if self._val:
            record = self.validate(record)
        self.history.append(record)
        self._course.adapt(record)
        if self._course.may_keep(epoch) and self.best is record:  # compared with all epochs before
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def describe_epoch(self) -> str:
        """Describe the last epoch in one line."""
        return describe_epoch(
            self.history,
            self._candidates,
            monitor=self._config.monitor,
            max_epochs=self._config.max_epochs,
        )

    def finish(self, out: Path) -> list[str]:
        """Give the model the weights that are kept, and complete it; name the files written."""
        best = self.best
        self.model.load_state_dict(self.best_weights)
        files, changed = self._course.finish(best.epoch, self._read_training, out)
        # An earlier version that began this training recorded no temperature.
        if self._val and (changed or best.val_temperature is None):
            self._remeasured = self.validate(best)
        return files

    def _read_training(self, most: int | None) -> Iterator[TrainingPatches]:
        """Read training patches without augmentation, always in the same order and batches."""
        chosen = Rows.choose(self._train, most, seed=self._seed)
        size = self._config.batch_size
        rows = np.split(np.arange(len(chosen.label)), range(size, len(chosen.label), size))
        batches = self.reader.read(chosen.stores, chosen.slide, chosen.patch, rows)
        for read, batch in zip(rows, batches, strict=True):
            own = read[batch.readable]
            if len(own):
                x = to_unit_range(batch.pixels, self._device)
                yield TrainingPatches(x, chosen.label[own], own, chosen.locate)

    def _train_once(self, epoch: int, on_progress: OnProgress | None) -> float:
        config = self._config
        # Seeded by the epoch alone, so that a repeated epoch is the same.
        seed = epoch_seed(self._seed, epoch)
        torch.manual_seed(seed + processes.rank())
        augment = Augment(config.augment, seed=seed, crop=config.model.preprocess.crop)
        slide, patch, label = self._sampler.draw(self._epoch_size)
        starts = range(0, self._epoch_size, config.batch_size)
        sizes = [min(config.batch_size, self._epoch_size - start) for start in starts]
        rows = [
            start + np.arange(n)[processes.own_share(n)]
            for start, n in zip(starts, sizes, strict=True)
        ]
        self._course.set_training()
        every = 1 if self._device.type == "cpu" else FETCHED_EVERY
        losses = Losses(self._device, every=every)
        weights: list[int] = []  # the last batch of a pass may be smaller
        if self._course.has_even_pace(epoch):
            self._pace.begin_epoch()
        steps = len(rows)
        for step, batch in enumerate(self.reader.read(self._train, slide, patch, rows)):
            samples = rows[step][batch.readable]
            done = (epoch - 1) * steps + step
            self._course.begin_step(done, steps)
            loss = self._step(batch.pixels, label[samples], samples, augment)
            if loss is not None:
                weights.append(sizes[step])
                self._check_losses(losses.add(loss), epoch)
            warning = self._pace.end_step(done=done + 1, steps_per_epoch=steps)
            if warning and processes.rank() == 0:
                log.warning("%s", warning)
            if on_progress:
                on_progress(done + 1, config.max_epochs * steps)
        self._check_losses(losses.fetch(), epoch)
        if not losses.values:
            raise TrainingError(
                f"{config.model.name}: none of the {pluralize(len(label), 'patch')} drawn in epoch "
                f"{epoch} could be read; check the slide files"
            )
        np.add.at(self.drawn, (slide, label.astype(np.int64)), 1)
        return math.fsum(a * n for a, n in zip(losses.values, weights, strict=True)) / sum(weights)

    def _check_losses(self, losses: Sequence[float], epoch: int) -> None:
        for value in losses:
            if not math.isfinite(value):
                raise self._diverged(f"the training loss became {value}", epoch)

    def _step(
        self,
        pixels: Tensor,
        label: NDArray[np.int8],
        samples: NDArray[np.int64],
        augment: Augment,
    ) -> Tensor | None:
        """Take one optimiser step on a batch, in parts; None if no patch could be read.

        The gradient is that of the mean loss over the patches of all processes and parts.

        Returns
        -------
        losses : (parts,) float32, on the device
            Their sum is this process's part of that mean.
        """
        n_in_all = processes.sum_over_all(len(label), self._device)
        if not n_in_all:
            return None
        self._course.optimizer.zero_grad(set_to_none=True)
        own = []
        # A process without a patch has one empty part: it takes part in the sum of gradients.
        parts = np.array_split(np.arange(len(label)), min(self._config.accumulate, len(label)) or 1)
        for number, part in enumerate(parts):
            y = torch.from_numpy(label[part].astype(np.float32)).to(self._device, non_blocking=True)
            x = self._prepare(pixels, part, samples, augment)
            with processes.without_exchange(self._loss, unless=number == len(parts) - 1):
                with compute_in(self._precision, self._device):
                    loss = self._loss(x, y)
                loss = loss * (len(part) / n_in_all)
                own.append(loss.detach())
                torch.autograd.backward(self._scaler.scale(loss * processes.n_processes()))
        self._scaler.step(self._course.optimizer)
        self._scaler.update()
        return torch.stack(own)

    def _prepare(
        self,
        pixels: Tensor,
        part: NDArray[np.int64],
        samples: NDArray[np.int64],
        augment: Augment,
    ) -> Tensor:
        """Convert and augment a part of a batch, on the device: (n, C, H, W)."""
        if not len(part):
            return torch.empty(0, 3, 1, 1, device=self._device)
        x = to_unit_range(pixels[part[0] : part[-1] + 1], self._device)
        return augment(x, samples[part])

    def validate(self, record: EpochRecord) -> EpochRecord:
        """Measure the validation loss E (mean cross-entropy), ROC AUC and calibration."""
        logits, label = self._logits(self._chosen, record.epoch)
        if len(np.unique(label)) < len(CLASS_NAMES):
            raise TrainingError(
                f"{self._config.model.name}: of the "
                f"{pluralize(len(self._chosen.label), 'validation patch')} those of "
                "one class cannot be read; check the slide files of split val"
            )
        return measure_validation(record, label, logits)

    def _accuracy(self, chosen: Rows, epoch: int) -> float:
        """Share of patches classified correctly, by the model's own rule."""
        logits, label = self._logits(chosen, epoch)
        scores = torch.from_numpy(logits).sigmoid().numpy()
        rule = Rule(self.model.threshold, self.model.strict)
        return float((rule.decide(scores) == (label == 1)).mean())

    @torch.no_grad()
    def _logits(self, chosen: Rows, epoch: int) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """Compute the logits of patches without augmentation; unreadable ones are skipped."""
        n, size = len(chosen.label), self._config.batch_size
        own = np.arange(n)[processes.own_share(n)]
        rows = [own[start : start + size] for start in range(0, len(own), size)]
        self.model.eval()
        parts = [np.empty(0)]
        for batch in self.reader.read(chosen.stores, chosen.slide, chosen.patch, rows):
            part = np.full(len(batch.readable), np.nan)
            if batch.readable.any():
                x = to_unit_range(batch.pixels, self._device)
                with compute_in(self._precision, self._device):
                    found = self._course.logits(x)
                part[batch.readable] = found.cpu().double().numpy()
                if not np.isfinite(part[batch.readable]).all():
                    part[batch.readable & ~np.isfinite(part)] = np.inf  # NaN means unread
            parts.append(part)
        logits = processes.gather_rows(np.concatenate(parts), n, self._device)
        read = ~np.isnan(logits)
        if np.isinf(logits).any():
            raise self._diverged("an output became infinite or NaN", epoch)
        return logits[read], chosen.label[read]

    def _diverged(self, what: str, epoch: int) -> TrainingError:
        return TrainingError(
            f"{self._config.model.name}: {what} in epoch {epoch}: training diverged; lower its "
            f"learning rate (lr, now {self._config.lr:g})"
        )


def epoch_seed(seed: int, epoch: int) -> int:
    """Return an epoch its own seed."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
