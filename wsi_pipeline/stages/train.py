"""The stage ``train``: patch stores, or single images -> checkpoints."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from tiling.files import digest_file
from tiling.wording import pluralize
from wsi_pipeline.cohort.kinds import Cohort, cohort_of
from wsi_pipeline.cohort.slides import open_store
from wsi_pipeline.config.extras import require
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import TrainConfig, fill_in_sampling, result_settings
from wsi_pipeline.contracts import Reporter, Split
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.tasks import Done, Job, NetworkTask
from wsi_pipeline.stages.inputs import check_device, check_model_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainModel(NetworkTask):
    """Train one model."""

    noun: ClassVar[str] = "model"
    counted: ClassVar[str] = "batch"
    model: str
    cohort: Cohort  # what is tiled of the splits train and val
    config: TrainConfig
    device: str

    @property
    def unit(self) -> Unit:
        """The model."""
        return Unit("train", model=self.model)

    @property
    def on_gpu(self) -> bool:
        """Unless it uses several, or the CPU is asked for."""
        return self.config.processes == 1 and super().on_gpu

    def fingerprint(self, run: RunFolder) -> str:
        """Hash patches or images, splits, settings and weights to start from."""
        weights = self.config.model.weights
        reviews = {name: digest_file(run.review(name)) for name in self._reviewed(run)}
        return digest_settings(
            self.cohort.digest(),
            result_settings(self.config),
            digest_file(weights) if weights else None,
            *([reviews] if self.config.hard_share else []),
        )

    def _reviewed(self, run: RunFolder) -> list[str]:
        """List the slides whose review is used."""
        if not self.config.hard_share:
            return []
        return run.reviewed(e.slide_id for e in self.cohort.slides if e.split == "train")

    def _find_hard(self, run: RunFolder) -> dict[str, "NDArray[np.bool_]"]:
        """Find the patches that the review marks as wrong, by slide."""
        from wsi_pipeline.cohort.reviews import find_hard_patches, read_marks

        found = {}
        entries = {e.slide_id: e for e in self.cohort.slides}
        for name in self._reviewed(run):
            with open_store(run, entries[name]) as store:
                found[name] = find_hard_patches(store, read_marks(run.review(name)))
        return found

    def __call__(self, job: Job, on_progress: Reporter) -> Done:
        """Write the checkpoint and the history; in several processes where that is asked for."""
        from wsi_pipeline.training.processes import in_processes

        return in_processes(
            self._train,
            job,
            processes=self.config.processes,
            device=self.device,
            on_progress=on_progress,
        )

    def _train(self, job: Job, on_progress: Reporter) -> Done:
        """Train in one of the processes."""
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.training import train_model
        from wsi_pipeline.training.processes import rank

        folder, config, cohort = job.run.model(self.model), self.config, self.cohort
        seed = config.seed or 0
        hard = self._find_hard(job.run)
        if config.hard_share and rank() == 0:
            on_progress.line(_describe_hard(hard))
        with cohort.open("train", seed=seed) as train, cohort.open("val", seed=seed) as val:
            summary = train_model(
                config,
                train=train,
                val=val,
                patients=cohort.patients(),
                hard=hard,
                out=folder,
                device=resolve_device(self.device, worker=rank()),
                readers=config.readers,
                fingerprint=job.fingerprint,
                on_progress=on_progress,
                print_line=on_progress.line,
                keep_state=True,
            )
        return list(summary.files), str(summary)

    def clean_up(self, run: RunFolder) -> None:
        """Remove the state of the training."""
        from wsi_pipeline.training.loop import RESUME_FILE

        (run.model(self.model) / RESUME_FILE).unlink(missing_ok=True)


def _describe_hard(hard: Mapping[str, "NDArray[np.bool_]"]) -> str:
    counts = [int(rows.sum()) for rows in hard.values() if rows.any()]
    if not counts:
        return "hard_share has no effect, as no review marks patches of split train as wrong"
    n_patches, n_slides = pluralize(sum(counts), "hard patch"), pluralize(len(counts), "slide")
    return f"{n_patches} on {n_slides} by the review"


def train(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Patch stores, or single images -> checkpoints."""

    cohort = cohort_of(run)
    chosen = {
        name: fill_in_sampling(settings, images=cohort.of_images)
        for name, settings in models_to_train(config, models).items()
    }
    check_model_names(run, chosen)
    needed: list[Split] = ["train"]
    needed += ["val"] if any(s.monitor != "none" for s in chosen.values()) else []
    cohort.check_splits(needed, config.splits)
    prepared = cohort.prepared(("train", "val"))
    check_device(options, *(settings.precision for settings in chosen.values()))
    for name, settings in chosen.items():
        steps = settings.steps_per_epoch
        if settings.sampling == "shuffle" and steps != TrainConfig.steps_per_epoch:
            log.warning(
                "no effect: train.%s.steps_per_epoch=%d, since each epoch passes over all patches "
                "or images once (sampling: shuffle); set sampling: balanced for draws",
                name,
                steps,
            )
        if settings.hard_share and (cohort.of_images or settings.sampling == "shuffle"):
            why = "single images have no review" if cohort.of_images else "sampling is shuffle"
            raise ConfigError(
                f"train.{name}.hard_share={settings.hard_share:g} has no effect, as {why}; set it "
                "to 0" + ("" if cohort.of_images else ", or set sampling: balanced")
            )
        if settings.log == "tensorboard":
            require("tensorboard")
        if settings.freeze is not None and settings.model.weights is None:
            log.warning(
                "train.%s.freeze=%s keeps random weights as they are, since it starts from none; "
                "give --weights FILE, or model.weights in the config",
                name,
                settings.freeze,
            )
    tasks = [TrainModel(name, prepared, how, options.device) for name, how in chosen.items()]
    result = run_stage("train", run, tasks, config, options)
    logged = [name for name in result.kept if chosen[name].log == "tensorboard"]
    return replace(result, notes=(*result.notes, *_log_kept(run, logged)))


def _log_kept(run: RunFolder, models: Sequence[str]) -> list[str]:
    """Write the event files of trainings that ended without them; return a line for each."""
    from wsi_pipeline.training.event_files import FOLDER, EventFiles, has_event_files
    from wsi_pipeline.training.history import read_history

    lines = []
    for model in models:
        folder = run.model(model) / FOLDER
        if not has_event_files(folder):
            with EventFiles(folder, read_history(run.model(model) / "history.csv")):
                lines.append(f"{model}: was trained before; event files written to {folder}")
    return lines


def models_to_train(config: Config, names: Sequence[str]) -> dict[str, TrainConfig]:
    """Choose the models named, or all of the config, with their settings.

    Raises
    ------
    ConfigError, ModelError
        If there is none, or no architecture or file of weights of that name.
    """
    from wsi_pipeline.models import MODELS, find_architecture
    from wsi_pipeline.models.pretrained import check_weights_file
    from wsi_pipeline.training.courses import choose_course

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
        find_architecture(settings.model.name)
        choose_course(settings).check(settings)
        if settings.model.weights:
            check_weights_file(settings.model.weights)
    return chosen
