"""The models that `predict` is given: their names, what they expect, loading them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tiling.files import digest_file
from wsi_pipeline.config.checkpoint_header import CheckpointMeta, read_meta
from wsi_pipeline.config.model_files import (
    CHECKPOINT_NAME,
    TORCHSCRIPT_NAME,
    ExternalModel,
    choose_positive,
    find_model,
    open_external,
)
from wsi_pipeline.config.settings import PredictConfig
from wsi_pipeline.errors import CheckpointError, ConfigError
from wsi_pipeline.names import check_model_name

log = logging.getLogger(__name__)

_CACHED = ("snapshots", "models--")  # a revision's folder in the cache of huggingface_hub


@dataclass(frozen=True)
class ModelSource:
    """A file with a model."""

    path: Path
    external: ExternalModel | None = None  # None: a checkpoint of this program

    @property
    def meta(self) -> CheckpointMeta:
        """What the model expects."""
        return self.external.meta if self.external else read_meta(self.path)

    def digest(self) -> str:
        """Hash what the scores depend on: the file, and what describes it."""
        return self.external.digest if self.external else digest_file(self.path)

    def check(self) -> None:
        """Report an invalid model before any slide is processed; say where its code will run."""
        if self.external is None:
            read_meta(self.path)
            return
        if trust := self.external.describe_trust():
            log.warning("%s", trust)
        network, _ = load_model(self.path, self.external.digest, self.external)
        names = network.class_names
        if len(names) == 2 and not self.external.positive:
            [number] = choose_positive(names, (), self.path)
            log.warning(
                "%s: the score is the probability of '%s', its second class; --positive chooses "
                "another",
                self.path,
                names[number],
            )


def find_sources(checkpoints: Iterable[Path], config: PredictConfig) -> dict[str, ModelSource]:
    """Sort checkpoints by the models' names; two with one name would overwrite each other.

    Raises
    ------
    ConfigError
        If two have one name, or an architecture or class is not known.
    CheckpointError
        If a folder holds no model, or a model no valid description.
    """
    found: dict[str, ModelSource] = {}
    for path in map(find_model, checkpoints):
        name = model_name(path)
        remedy = f"rename the file (a {CHECKPOINT_NAME}: its folder), which names its scores"
        check_model_name(name, f"--checkpoint {path}: the model's name", remedy=remedy)
        if name in found and found[name].path.resolve() != path.resolve():
            raise ConfigError(
                f"--checkpoint: {found[name].path} and {path} both are the model '{name}'; rename "
                f"one of the files (a {CHECKPOINT_NAME}: its folder), which names its scores"
            )
        external = open_external(path, architecture=config.architecture, positive=config.positive)
        found[name] = ModelSource(path, external)
    return found


def warn_of_no_effect(sources: Iterable[ModelSource], config: PredictConfig) -> None:
    """Warn of settings that are for files of other programs, where there is none."""
    kinds = {source.external.kind for source in sources if source.external}
    if config.architecture and "state_dict" not in kinds:
        log.warning("no effect: predict.architecture, as no checkpoint is a plain state dict")
    if config.positive and not kinds:
        log.warning("no effect: predict.positive, as all checkpoints are of this program")


def model_name(checkpoint: Path) -> str:
    """Name a model by the folder that train made for it, or by the file where it was renamed.

    A model of WSInfer's zoo is named by its folder, in a cache by its repository.

    Examples
    --------
    >>> model_name(Path("run/models/vgg16/checkpoint.safetensors"))
    'vgg16'
    >>> model_name(Path("lymph_node_v2.safetensors"))
    'lymph_node_v2'
    >>> model_name(Path("/zoo/models--a--breast-resnet34/snapshots/3e7167/torchscript_model.pt"))
    'breast-resnet34'
    """
    if checkpoint.name == CHECKPOINT_NAME and checkpoint.resolve().parent.name:
        return checkpoint.resolve().parent.name
    if checkpoint.name == TORCHSCRIPT_NAME:
        folder = checkpoint.parent.resolve()  # in a cache the file is a link, not the folder
        repository = folder.parent.parent.name
        if folder.parent.name == _CACHED[0] and repository.startswith(_CACHED[1]):
            return repository.rpartition("--")[2]
        return folder.name or checkpoint.stem
    return checkpoint.stem


@lru_cache(maxsize=1)
def load_model(
    checkpoint: Path, digest: str, external: ExternalModel | None = None
) -> tuple[Any, Any]:
    """Load the checkpoint whose bytes have this digest: a worker may outlive the file it read.

    Kept between the slides of one process; a process works on one model at a time.
    """
    from wsi_pipeline.models import checkpoint as checkpoints

    if external is None:
        model, meta = checkpoints.load_checkpoint(checkpoint)
        found = checkpoints.digest(checkpoint)
    else:
        from wsi_pipeline.models.external import load_external

        model, meta = load_external(external), external.meta
        again = open_external(
            checkpoint, architecture=external.architecture, positive=external.positive
        )
        found = again.digest if again else ""
    if found != digest:
        raise CheckpointError(
            f"{checkpoint}: another file than when this command began (SHA-256 {found[:12]}..., "
            f"then {digest[:12]}...); let what writes it end, then run the same command again"
        )
    return model, meta


def needed_patches(
    sources: Mapping[str, ModelSource], *, otherwise: tuple[int, float]
) -> Sequence[tuple[int, float]]:
    """List the different (side in px, µm per px) of patches that models need.

    A model without a description takes those of `otherwise`.

    Raises
    ------
    CheckpointError
        If a model was trained on single images, for which a slide has no patches.
    """
    metas = [source.meta for source in sources.values()]
    for source, meta in zip(sources.values(), metas, strict=True):
        if meta.image_shape is not None:
            raise CheckpointError(
                f"{source.path}: {meta.model} was trained on single images, so the patches of a "
                "slide are undefined; for new images run tile FOLDER --set 'images={}' --out RUN, "
                "then predict RUN --checkpoint FILE"
            )
    return sorted({(m.patch_px, m.target_mpp) if m.patch_px else otherwise for m in metas})
