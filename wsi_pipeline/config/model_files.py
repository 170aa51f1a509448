"""Models of other programs that `predict` takes: what a file is, read without torch.

A file is TorchScript or a program of ``torch.export`` with a description next to it, or a plain
state dict of a known architecture. Only the list of names in an archive is looked at here; nothing
is loaded.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import safetensors

from tiling.contracts import CLASS_NAMES, PatchKind
from tiling.files import check_file, digest_file
from tiling.wording import name_some
from wsi_pipeline.config.checkpoint_header import HEADER_KEY, CheckpointMeta, read_metadata
from wsi_pipeline.config.zoo_config import IMAGENET, Step, ZooConfig, read_zoo_config
from wsi_pipeline.errors import CheckpointError, ConfigError

Kind = Literal["torchscript", "export", "state_dict"]

CHECKPOINT_NAME = "checkpoint.safetensors"
TORCHSCRIPT_NAME = "torchscript_model.pt"  # of WSInfer's zoo
CONFIG_NAME = "config.json"
RUNS_CODE: dict[str, str] = {
    "torchscript": "a TorchScript file",
    "export": "a file of torch.export",
}


@dataclass(frozen=True)
class ExternalModel:
    """A model of another program, and how it is to be read.

    Parameters
    ----------
    path : Path
        Of the model.
    kind : {"torchscript", "export", "state_dict"}
    digest : str
        SHA-256 of everything the scores depend on: the model's bytes, its description, the
        architecture and the positive classes.
    description : ZooConfig, optional
        As the file next to the model has it.
    architecture : str, optional
        Of a state dict.
    positive : tuple of str
        Classes whose probabilities add up to the score; empty: the default of `choose_positive`.
    """

    path: Path
    kind: Kind
    digest: str
    description: ZooConfig | None
    architecture: str | None
    positive: tuple[str, ...]

    @property
    def meta(self) -> CheckpointMeta:
        """What the stages need to know of it; ``patch_px`` 0: patches of any size."""
        known = self.description
        return CheckpointMeta(
            model=self.architecture or (known and known.architecture) or self.kind,
            options={},
            patch_px=known.patch_px if known else 0,
            target_mpp=known.mpp if known else 0.0,
            class_names=CLASS_NAMES,
        )

    @property
    def transform(self) -> tuple[Step, ...]:
        """What is done to images before the network."""
        return self.description.transform if self.description else IMAGENET

    def describe_trust(self) -> str:
        """Say that loading runs code of the file's author; empty: it does not."""
        what = RUNS_CODE.get(self.kind)
        return f"{self.path} is {what}: it runs code of its author" if what else ""


def find_model(path: Path) -> Path:
    """Find the model in a folder, as the zoo has it; a file is returned as it is.

    Raises
    ------
    CheckpointError
        If the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    for name in (CHECKPOINT_NAME, TORCHSCRIPT_NAME):
        if (path / name).is_file():
            return path / name
    found = sorted(file for file in path.iterdir() if file.suffix in (".pt", ".pt2", ".pth"))
    if len(found) == 1:
        return found[0]
    names = f"it has {name_some(file.name for file in found)}" if found else "it has none"
    raise CheckpointError(f"{path}: a folder with one model is needed, and {names}; name the file")


def open_external(
    path: Path, *, architecture: str | None = None, positive: Sequence[str] = ()
) -> ExternalModel | None:
    """Describe a model file of another program; None: the file is to be read as a checkpoint.

    Parameters
    ----------
    path : Path
        Of a model, as `find_model` returns it.
    architecture : str, optional
        Of a state dict.
    positive : sequence of str
        Classes whose probabilities add up to the score.

    Raises
    ------
    CheckpointError
        If the file or its description is missing, damaged or of another kind.
    ConfigError
        If the architecture of a state dict is not named, or a positive class is not known.
    """
    kind = _find_kind(path)
    if kind is None or (
        kind == "state_dict" and path.suffix == ".safetensors" and not architecture
    ):
        return None
    where = _find_description(path)
    description = read_zoo_config(where) if where else None
    if kind == "state_dict" and architecture is None:
        hint = description.architecture if description else None
        raise ConfigError(
            f"--checkpoint {path}: a state dict, which holds weights alone; name its network by "
            f"--architecture {hint or 'NAME'}"
        )
    if kind != "state_dict" and description is None:
        raise CheckpointError(
            f"{path}: no description of its classes, patch size and resolution; put WSInfer's "
            f"{CONFIG_NAME}, or {path.stem}.json, next to it (docs/other_models.md)"
        )
    chosen = tuple(dict.fromkeys(positive))
    if description:
        choose_positive(description.class_names, chosen, path)
    used = architecture if kind == "state_dict" else None
    parts = [digest_file(path), digest_file(where) if where else None, used, chosen]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return ExternalModel(path, kind, digest, description, used, chosen)


def describe_file(path: Path) -> str:
    """Describe a model of another program for a person, as Markdown; empty: it is not one.

    Raises
    ------
    CheckpointError
        If its description is damaged.
    """
    kind = _find_kind(path)
    if kind is None:
        return ""
    what = f"{RUNS_CODE[kind]}: it runs code of its author" if kind in RUNS_CODE else ""
    lines = [f"# {path.name}", "", what or "a plain state dict: weights, for --architecture", ""]
    where = _find_description(path)
    if where is None:
        lines.append(f"- no {CONFIG_NAME} next to it")
    else:
        known = read_zoo_config(where)
        lines += [
            f"- classes: {', '.join(known.class_names)}",
            f"- patches: {known.patch_px} px at {known.mpp:g} µm per pixel",
            f"- transform: {', '.join(type(step).__name__ for step in known.transform)}",
            f"- architecture: {known.architecture or 'not recorded'}",
        ]
    lines.append("- training data, metrics, licence: not recorded in it")
    return "\n".join(lines) + "\n"


def choose_positive(
    class_names: Sequence[str], positive: Sequence[str], path: Path
) -> tuple[int, ...]:
    """Choose the outputs whose probabilities add up to the score.

    Without a choice it is the only class, or the second of two, as label 1 is.

    Raises
    ------
    ConfigError
        If a class is not known, all are chosen, or a choice is needed.

    Examples
    --------
    >>> choose_positive(["benign", "grade 3", "grade 4"], ["grade 4", "grade 3"], Path("a.pt"))
    (1, 2)
    """
    unknown = [name for name in positive if name not in class_names]
    if unknown:
        raise ConfigError(
            f"--positive {unknown[0]}: {path} has no such class; it has "
            f"{name_some(class_names, 20)}"
        )
    if not positive and len(class_names) > 2:
        raise ConfigError(
            f"{path} has {len(class_names)} classes ({name_some(class_names, 20)}); choose those "
            "whose probabilities add up to the score by --positive CLASS (repeatable)"
        )
    chosen = positive or class_names[-1:]
    if len(class_names) > 1 and len(set(chosen)) == len(class_names):
        raise ConfigError(
            f"--positive: all classes of {path} are chosen ({name_some(class_names, 20)}), so "
            "every score would be 1; leave out the normal ones"
        )
    return tuple(number for number, name in enumerate(class_names) if name in chosen)


def fit_meta(meta: CheckpointMeta, kind: PatchKind) -> CheckpointMeta:
    """Take on the patches that there are, where a model has no description of its own."""
    if meta.patch_px:
        return meta
    shape = kind.shape if kind.single else None
    return replace(meta, patch_px=kind.shape[0], target_mpp=kind.mpp, image_shape=shape)


def _find_kind(path: Path) -> Kind | None:
    """Tell what a file is; None: a checkpoint of this program, or for its reader to refuse."""
    if path.suffix == ".safetensors":
        return None if _is_checkpoint(path) else "state_dict"
    try:
        check_file(path)
        if not zipfile.is_zipfile(path):
            # torch's format before 1.6, which only weights_only=True reads here
            return "state_dict" if path.suffix in (".pt", ".pth", ".bin") else None
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return None  # read_meta gives the reason
    if "archive_format" in names:
        return "export"
    if "constants.pkl" in names:
        return "torchscript"
    return "state_dict" if "data.pkl" in names else None


def _is_checkpoint(path: Path) -> bool:
    try:
        return HEADER_KEY in read_metadata(path)
    except (OSError, safetensors.SafetensorError):
        return True  # read_meta gives the reason


def _find_description(path: Path) -> Path | None:
    places = (path.with_suffix(".json"), path.parent / CONFIG_NAME)
    return next((place for place in places if place.is_file()), None)
