"""The figures of a plan: of each slide or image, of each model, of the whole run."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tiling.contracts import Footprint
from tiling.wording import pluralize
from wsi_pipeline.config.reading import Config
from wsi_pipeline.contracts import Split
from wsi_pipeline.run.state import State

BACKWARD = 3  # a training step costs about three forward passes (forward, and two products back)


@dataclass(frozen=True)
class SlidePlan:
    """What would become of one slide, or of one image, which is a patch."""

    slide_id: str  # of an image, its image_id
    split: str | None = None
    state: State = "missing"
    problem: str = ""  # why it would fail; empty if it would not
    patches: int = 0
    positive: int = 0
    negative: int = 0
    ignored: int = 0
    unlabelled: int = 0
    bytes: int = 0  # patch store and picture
    files: int = 0
    heatmap_bytes: int = 0  # at most, of one model's values
    seconds: float = 0.0  # to tile it; 0 where it is finished
    unreadable_probes: int = 0
    notes: tuple[str, ...] = ()
    is_picture_estimated: bool = False  # its bytes: the mean of those that were drawn


@dataclass(frozen=True)
class ModelPlan:
    """What a model would cost."""

    name: str
    seconds_per_patch: float | None  # a forward pass here; None: could not be probed
    train_patches: int  # at most, over all epochs
    predict_patches: int
    problem: str = ""
    frozen_seconds_per_patch: float = 0.0  # of `seconds_per_patch`, in blocks that are not trained
    frozen_patches: int = 0  # that training passes through them: maps may be kept

    @property
    def train_seconds(self) -> float | None:
        """At most: training may stop early."""
        each, frozen = self.seconds_per_patch, self.frozen_seconds_per_patch
        if each is None:
            return None
        return frozen * self.frozen_patches + BACKWARD * (each - frozen) * self.train_patches

    @property
    def predict_seconds(self) -> float | None:
        """For all slides."""
        return (
            None
            if self.seconds_per_patch is None
            else (self.seconds_per_patch * self.predict_patches)
        )


@dataclass(frozen=True)
class RunPlan:
    """What a whole run would do."""

    slides: tuple[SlidePlan, ...]
    # What tile writes besides: the label audit, run.json, ...
    extra: Footprint = field(default_factory=lambda: Footprint(0, 0))
    models: tuple[ModelPlan, ...] = ()
    estimates: dict[str, tuple[int, int]] = field(default_factory=dict)  # stage -> files, bytes
    free_bytes: int | None = None
    problems: tuple[str, ...] = ()  # of the run as a whole
    shard_bytes: tuple[int, ...] = ()  # of slide files in each shard
    workers: int = 1
    picture_error: int = 0  # bytes: two standard errors of those of pictures that were not drawn
    of: str = "slide"  # what one of `slides` is: a slide, or an image

    @property
    def new(self) -> list[SlidePlan]:
        """Slides that would be tiled."""
        return [s for s in self.slides if not s.problem and s.state != "finished"]

    @property
    def need_bytes(self) -> int:
        """Room that would be taken, estimates included."""
        return self.new_bytes + sum(size for _, size in self.estimates.values())

    @property
    def new_bytes(self) -> int:
        """Bytes that `tile` would write."""
        return sum(s.bytes for s in self.new) + self.extra.bytes

    @property
    def new_files(self) -> int:
        """Files that `tile` would write."""
        return sum(s.files for s in self.new) + self.extra.files

    @property
    def exit_code(self) -> int:
        """0 all would work, 3 some would fail, 1 nothing could be done."""
        failing = sum(bool(s.problem) for s in self.slides)
        if failing == len(self.slides):
            return 1
        return 3 if failing or self.problems or any(m.problem for m in self.models) else 0

    def as_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            f"{self.of}s": [asdict(s) for s in self.slides],
            "totals": {
                f"{self.of}s": len(self.slides),
                "failing": sum(bool(s.problem) for s in self.slides),
                "patches": sum(s.patches for s in self.slides),
                "files": sum(s.files for s in self.slides) + self.extra.files,
                "bytes": sum(s.bytes for s in self.slides) + self.extra.bytes,
                "new_files": self.new_files,
                "new_bytes": self.new_bytes,
                "new_bytes_error": self.picture_error,
                "seconds": sum(s.seconds for s in self.new) / self.workers,
            },
            "estimates": {
                stage: {"files": files, "bytes": size}
                for stage, (files, size) in self.estimates.items()
            },
            "models": [
                asdict(m) | {"train_seconds": m.train_seconds, "predict_seconds": m.predict_seconds}
                for m in self.models
            ],
            "need_bytes": self.need_bytes,
            "free_bytes": self.free_bytes,
            "problems": list(self.problems),
            "shard_bytes": list(self.shard_bytes),
        }


def free_bytes(run: Path | None) -> int | None:
    """Return the room in the file system of a run folder; None where there is no such folder."""
    if run is None:
        return None
    folder = next(parent for parent in (run.absolute(), *run.absolute().parents) if parent.exists())
    return shutil.disk_usage(folder).free


def to_predict(slides: Sequence[SlidePlan], config: Config) -> list[SlidePlan]:
    """Choose the slides or images that `predict` would score."""
    wanted = config.predict.splits
    return [
        s
        for s in slides
        if not s.problem and (wanted is None or s.split is None or s.split in wanted)
    ]


def find_problems(
    slides: Sequence[SlidePlan], config: Config, *, of: str, advise: Callable[[Split], str]
) -> list[str]:
    """Name what training would fail on.

    Parameters
    ----------
    slides : sequence of SlidePlan
    config : Config
    of : str
        What one of them is called.
    advise : function
        Why no slide is in a split, and what to do.
    """
    if "train" not in config.stages:
        return []
    if not config.train:
        return ["train: the config names no model under train; name one, or leave train out"]
    found = []
    validated = any(settings.monitor != "none" for settings in config.train.values())
    needed: list[Split] = ["train", "val"] if validated else ["train"]
    for split in needed:
        inside = [s for s in slides if s.split == split and not s.problem]
        if not inside and any(s.split == split for s in slides):
            found.append(f"train: no readable {of} in split {split}")
            continue
        if not inside:
            found.append(f"train: no {of} in split {split}: {advise(split)}")
            continue
        counts = {
            "positive": sum(s.positive for s in inside),
            "negative": sum(s.negative for s in inside),
        }
        missing = [kind for kind, count in counts.items() if not count]
        found += [
            f"train: split {split} has no {kind} {'patch' if of == 'slide' else of} in its "
            f"{pluralize(len(inside), of)}; check labels"
            + (", annotations and tile.label_rule" if of == "slide" else "")
            for kind in missing
        ]
    return found
