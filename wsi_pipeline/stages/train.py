"""The stage ``train``: patch stores, or images -> checkpoints."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiling.contracts import OnProgress
from tiling.files import (
    digest_file,
)
from wsi_pipeline.cohort.image_folder import (
    read_images,
)
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.cohort.splits import advise_missing_split
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import (
    TrainConfig,
    fill_in_sampling,
    result_settings,
)
from wsi_pipeline.contracts import SlideEntry, Split
from wsi_pipeline.errors import (
    ConfigError,
    StageError,
)
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.tasks import Done, Job, Task
from wsi_pipeline.stages.image_inputs import (
    data_fingerprint,
    is_image_run,
)
from wsi_pipeline.stages.inputs import (
    check_device,
    check_model_names,
    digest_store,
    finished_entries,
    open_store,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOnSlides(Task):
    """Train one model on patch stores."""

    model: str
    entries: Sequence[SlideEntry]
    config: TrainConfig
    device: str

    @property
    def unit(self) -> Unit:
        """The model."""
        return Unit("train", model=self.model)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash stores, splits, settings and weights to start from."""
        data = [(e.slide_id, e.patient, e.split, digest_store(run, e)) for e in self.entries]
        weights = self.config.model.weights
        return digest_settings(
            data, result_settings(self.config), digest_file(weights) if weights else None
        )

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the checkpoint and the history; in several processes where that is asked for."""
        return _in_processes(self._train, job, self.config, self.device, on_progress)

    def _train(self, job: Job, on_progress: OnProgress) -> Done:
        """Train in one of the processes."""
        from wsi_pipeline.models.devices import resolve_device
        from wsi_pipeline.training import train_model
        from wsi_pipeline.training.processes import rank

        folder = job.run.model(self.model)
        with contextlib.ExitStack() as opened:
            stores = {
                split: [
                    opened.enter_context(open_store(job.run, e))
                    for e in self.entries
                    if e.split == split
                ]
                for split in ("train", "val")
            }
            summary = train_model(
                self.config,
                train=stores["train"],
                val=stores["val"],
                patients={e.slide_id: e.patient for e in self.entries},
                out=folder,
                device=resolve_device(self.device, worker=rank()),
                readers=self.config.readers,
                fingerprint=job.fingerprint,
                on_progress=on_progress,
            )
        return _trained_files(folder), str(summary)


@dataclass(frozen=True)
class TrainOnImages(Task):
    """Train one model on a folder of images."""

    model: str
    data: str  # digest of the images and their table
    config: TrainConfig
    device: str

    @property
    def unit(self) -> Unit:
        """The model."""
        return Unit("train", model=self.model)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash images, splits, settings and weights to start from."""
        weights = self.config.model.weights
        return digest_settings(
            self.data, result_settings(self.config), digest_file(weights) if weights else None
        )

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the checkpoint and the history; in several processes where that is asked for."""
        return _in_processes(self._train, job, self.config, self.device, on_progress)

    def _train(self, job: Job, on_progress: OnProgress) -> Done:
        """Train in one of the processes."""
        from wsi_pipeline.models.devices import resolve_device
        from wsi_pipeline.training import train_model
        from wsi_pipeline.training.processes import rank

        run, config = job.run, self.config
        folder = run.model(self.model)
        train, val = (_groups(run, s, config.seed or 0) for s in ("train", "val"))
        summary = train_model(
            config,
            train=train,
            val=val,
            patients={group.info.slide_id: group.info.slide_id for group in (*train, *val)},
            out=folder,
            device=resolve_device(self.device, worker=rank()),
            readers=config.readers,
            fingerprint=job.fingerprint,
            on_progress=on_progress,
        )
        return _trained_files(folder), str(summary)


def _in_processes(
    work: Callable[[Job, OnProgress], Done],
    job: Job,
    config: TrainConfig,
    device: str,
    on_progress: OnProgress,
) -> Done:
    from wsi_pipeline.training.processes import in_processes

    return in_processes(
        work, job, processes=config.processes, device=device, on_progress=on_progress
    )


def _trained_files(folder: Path) -> list[Path]:
    """List what a finished training leaves in its folder, the checkpoint first."""
    from wsi_pipeline.training.outputs import OUTPUTS

    return [folder / name for name in OUTPUTS]


def _groups(run: RunFolder, split: Split, seed: int) -> list[Any]:
    """Make the groups of a split; for training of equally many images where that is asked for."""
    from wsi_pipeline.cohort.image_store import (
        choose_equal,
        group_by_patient,
        open_images,
        raise_to_parity,
        read_about,
    )

    entries = read_images(run.images)
    images = open_images(run.tiles, entries)
    rows = [row for row, e in enumerate(entries) if e.split == split and e.label >= 0]
    balance = read_about(run.tiles)["settings"]["equal_classes"]
    if split == "train" and balance:
        labels = np.array([entries[row].label for row in rows], np.int8)
        labels[images.unreadable[rows]] = -1
        choose = raise_to_parity if balance == "upsample" else choose_equal
        rows = [rows[place] for place in choose(labels, seed=seed)]
    return group_by_patient(images, entries, rows)


def train(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Patch stores -> checkpoints."""
    if is_image_run(run):
        chosen = models_to_train(config, models)
        check_model_names(run, chosen)
        check_device(options, *(settings.precision for settings in chosen.values()))
        return _train_on_images(run, config, options, chosen=chosen)
    listed = read_run_manifest(run)
    chosen = {
        name: fill_in_sampling(settings, images=False)
        for name, settings in models_to_train(config, models).items()
    }
    check_model_names(run, chosen)
    _check_splits(run, listed, config, chosen)
    entries = finished_entries(run, ("train", "val"))
    check_device(options, *(settings.precision for settings in chosen.values()))
    tasks = [TrainOnSlides(name, entries, how, options.device) for name, how in chosen.items()]
    return run_stage("train", run, tasks, config, options)


def _train_on_images(
    run: RunFolder, config: Config, options: Options, *, chosen: Mapping[str, TrainConfig]
) -> StageResult:
    """Images -> checkpoints."""
    data = data_fingerprint(run)
    if not any(e.split == "train" for e in read_images(run.images)):
        raise ConfigError(
            f"{run.path}: no image in the split train; tile again with splits in the config "
            "(--set splits.val_fraction=0.2), or with train/ and test/ folders, or a table's split"
        )
    tasks = []
    for name, given in chosen.items():
        settings = fill_in_sampling(given, images=True)
        steps = settings.steps_per_epoch
        if settings.sampling == "shuffle" and steps != TrainConfig.steps_per_epoch:
            log.warning(
                "no effect: train.%s.steps_per_epoch=%d, since each epoch passes over all images "
                "once (sampling: shuffle); set sampling: balanced for draws",
                name,
                steps,
            )
        tasks.append(TrainOnImages(name, data, settings, options.device))
    return run_stage("train", run, tasks, config, options)


def _check_splits(
    run: RunFolder,
    entries: Sequence[SlideEntry],
    config: Config,
    chosen: Mapping[str, TrainConfig],
) -> None:
    """Refuse to train where a split that is needed has no slide at all."""
    needed: list[Split] = ["train"]
    needed += ["val"] if any(s.monitor != "none" for s in chosen.values()) else []
    for split in needed:
        if not any(e.split == split for e in entries):
            advice = advise_missing_split(entries, split, made=config.splits)
            raise StageError(f"{run.path}: no slide in split {split}: {advice}")


def models_to_train(config: Config, names: Sequence[str]) -> dict[str, TrainConfig]:
    """Choose the models named, or all of the config, with their settings.

    Raises
    ------
    ConfigError, ModelError
        If there is none, or no architecture or file of weights of that name.
    """
    from wsi_pipeline.models import MODELS
    from wsi_pipeline.models.pretrained import check_weights_file

    if not names and not config.train:
        raise ConfigError(
            f"no model named; use --model NAME, one of {', '.join(sorted(MODELS))}, "
            "or name models in the config under train"
        )
    chosen = {
        name: replace(config.train[name], seed=config.seed)
        if config.train[name].seed is None
        else config.train[name]
        for name in names or config.train
    }
    for settings in chosen.values():
        if settings.model.name not in MODELS:
            known = ", ".join(sorted(MODELS))
            raise ConfigError(f"no model is called '{settings.model.name}'; known: {known}")
        if settings.model.weights:
            check_weights_file(settings.model.weights)
    return chosen
