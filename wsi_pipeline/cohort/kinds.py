"""The data set of a run as a stage sees it: slides, or single images; two kinds of one thing."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tiling.files import digest_file
from tiling.wording import name_some
from wsi_pipeline.cohort.image_folder import ALL, ImageEntry, read_images
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.cohort.slides import digest_store, finished_entries, open_store
from wsi_pipeline.cohort.splits import advise_image_split, advise_missing_split
from wsi_pipeline.config.reading import (
    Config,
    SplitConfig,
    as_plain,
    digest_settings,
    name_changes,
)
from wsi_pipeline.contracts import SlideEntry, Split
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.mark_index import MarkIndex
from wsi_pipeline.run.state import check_unit

if TYPE_CHECKING:
    from wsi_pipeline.cohort.data import Patches
    from wsi_pipeline.cohort.image_store import ImageArray


log = logging.getLogger(__name__)

# Settings that matter to single images; the others of these sections are of slides alone.
USED: dict[str, tuple[str, ...]] = {
    "tile": (),
    "predict": (
        "batch_size",
        "precision",
        "tolerance",
        "readers",
        "splits",
        "calibrated",
        "architecture",
        "positive",
    ),
    "heatmap": ("maps_per_class", "method", "layer"),
    "evaluate": ("split", "image_threshold", "bootstrap", "stratified", "seed"),
    "report": ("slide_pictures",),
}


class Cohort(Protocol):
    """The data set of a run; it can be sent to a worker."""

    @property
    def run(self) -> RunFolder:
        """The run."""

    @property
    def of_images(self) -> bool:
        """Whether it is of single images; else of slides."""

    @property
    def slides(self) -> Sequence[SlideEntry]:
        """The slides; of images, none."""

    @property
    def units(self) -> Sequence[str]:
        """Names of its units of work."""

    def describe(self) -> list[str]:
        """Say what units of work do not: of images, how many there are and cannot be read."""

    def ready_units(
        self, splits: Sequence[str | None] | None, marks: MarkIndex, *, scored_by: str = ""
    ) -> list[str]:
        """Name the units that are tiled, in one of `splits` (None: any), and scored by a model."""

    def check_splits(self, needed: Sequence[Split], made: SplitConfig | None) -> None:
        """Refuse to train where a split is empty; `made`: how the splits were made, if here."""

    def prepared(self, splits: Sequence[str | None] | None = None) -> "Cohort":
        """Return what is tiled of some splits (None: of all), or a StageError."""

    def digest(self) -> Any:
        """Hash what the patches were made from, their groups and splits; JSON can hold it."""

    def open(self, split: Split, *, seed: int) -> AbstractContextManager[list["Patches"]]:
        """Open what to train or validate on; `seed`: of a choice among images, if any."""

    def patients(self) -> Mapping[str, str]:
        """Return the patient of each slide_id that `open` gives."""


@dataclass(frozen=True)
class SlideCohort:
    """Slides: a unit is a patch store."""

    run: RunFolder
    entries: Sequence[SlideEntry]
    of_images = False

    @property
    def slides(self) -> Sequence[SlideEntry]:
        """All of them."""
        return self.entries

    def describe(self) -> list[str]:
        """Nothing: each slide is a unit."""
        return []

    @property
    def units(self) -> list[str]:
        """The slides."""
        return [e.slide_id for e in self.entries]

    def ready_units(
        self, splits: Sequence[str | None] | None, marks: MarkIndex, *, scored_by: str = ""
    ) -> list[str]:
        """Name the slides that are tiled, in one of `splits` (None: any), and scored by a model."""
        found = [e.slide_id for e in self.entries if splits is None or e.split in splits]
        stages = [("tile", ""), *([("predict", scored_by)] if scored_by else [])]
        return [s for s in found if all(marks.is_marked(Unit(name, s, m)) for name, m in stages)]

    def check_splits(self, needed: Sequence[Split], made: SplitConfig | None) -> None:
        """Refuse to train where a split has no slide at all."""
        for split in needed:
            if not any(e.split == split for e in self.entries):
                advice = advise_missing_split(self.entries, split, made=made)
                raise StageError(f"{self.run.path}: no slide in split {split}: {advice}")

    def prepared(self, splits: Sequence[str | None] | None = None) -> "SlideCohort":
        """Return the slides that have a patch store."""
        return SlideCohort(self.run, finished_entries(self.run, self.entries, splits))

    def digest(self) -> list[tuple[str, str, str | None, str]]:
        """Hash each slide's store."""
        return [(e.slide_id, e.patient, e.split, digest_store(self.run, e)) for e in self.entries]

    @contextmanager
    def open(self, split: Split, *, seed: int) -> Iterator[list["Patches"]]:
        """Open the patch stores of a split."""
        with ExitStack() as opened:
            yield [
                opened.enter_context(open_store(self.run, e, random=split == "train"))
                for e in self.entries
                if e.split == split
            ]

    def patients(self) -> dict[str, str]:
        """Return the patient of each slide."""
        return {e.slide_id: e.patient for e in self.entries}


@dataclass(frozen=True)
class ImageCohort:
    """Single images: a unit is all of them, in one array; their groups are the patients."""

    run: RunFolder
    data: str = ""  # digest of the images and their table, once they are seen to be prepared
    of_images = True
    slides = ()

    def describe(self) -> list[str]:
        """Say how many images there are, and which could not be read."""
        ids = [e.image_id for e in self.entries]
        lost = [i for i in ids if Unit("tile", i).mark(self.run, "failed").is_file()]
        named = f" ({name_some(lost, 20)})" if lost else ""
        return [f"images: {len(ids)}, {len(lost)} unreadable{named}"]

    units = (ALL,)

    def ready_units(
        self, splits: Sequence[str | None] | None, marks: MarkIndex, *, scored_by: str = ""
    ) -> list[str]:
        """Name the one unit, which is of all splits."""
        return [ALL]

    @property
    def entries(self) -> list[ImageEntry]:
        """The images, in the order of the array."""
        return read_images(self.run.images)

    def array(self) -> "ImageArray":
        """Open the images."""
        from wsi_pipeline.cohort.image_store import open_images

        return open_images(self.run.tiles, self.entries)

    def check_splits(self, needed: Sequence[Split], made: SplitConfig | None) -> None:
        """Refuse to train where a split has no image at all."""
        entries = self.entries
        for split in needed:
            if not any(e.split == split for e in entries):
                advice = advise_image_split(split)
                raise StageError(f"{self.run.path}: no image in split {split}: {advice}")

    def prepared(self, splits: Sequence[str | None] | None = None) -> "ImageCohort":
        """See that the images are prepared and sound, whatever their splits."""
        from wsi_pipeline.cohort.image_store import read_about

        run, unit = self.run, Unit("tile", ALL)
        if not (run.tiles / "images.json").is_file() or not unit.is_marked(run):
            raise StageError(
                f"{run.path}: its images are not prepared; run: wsi-pipeline tile FOLDER --out "
                f"{run.path}"
            )
        require_sound(run, unit)
        return ImageCohort(run, digest_settings(read_about(run.tiles), digest_file(run.images)))

    def digest(self) -> str:
        """Hash the pixels' origin and the table of classes, patients and splits."""
        return self.data

    def is_still(self, data: str) -> bool:
        """Whether the images and their table are sound and have this digest."""
        try:
            return self.prepared().data == data
        except StageError:
            return False

    @contextmanager
    def open(self, split: Split, *, seed: int) -> Iterator[list["Patches"]]:
        """Group a split's images by patient; for training equally many of each class, if asked."""
        from wsi_pipeline.cohort.image_store import (
            choose_equal,
            group_by_patient,
            open_images,
            raise_to_parity,
            read_about,
        )

        entries = self.entries
        images = open_images(self.run.tiles, entries)
        rows = [row for row, e in enumerate(entries) if e.split == split and e.label >= 0]
        balance = read_about(self.run.tiles)["settings"]["equal_classes"]
        if split == "train" and balance:
            labels = np.array([entries[row].label for row in rows], np.int8)
            labels[images.unreadable[rows]] = -1
            choose = raise_to_parity if balance == "upsample" else choose_equal
            rows = [rows[place] for place in choose(labels, seed=seed)]
        yield list(group_by_patient(images, entries, rows))

    def patients(self) -> dict[str, str]:
        """Each group is a patient."""
        return {e.patient: e.patient for e in self.entries}


def cohort_of(run: RunFolder, only: Collection[str] | None = None) -> SlideCohort | ImageCohort:
    """Return the data set of a run.

    Parameters
    ----------
    run : RunFolder
    only : collection of str, optional
        Ids of slides; default: all. Images are not divided.

    Raises
    ------
    StageError
        If this is no run folder.
    """
    if run.images.is_file():
        return ImageCohort(run)
    entries = read_run_manifest(run)
    return SlideCohort(run, [e for e in entries if only is None or e.slide_id in only])


def warn_of_unused(config: Config, section: str) -> None:
    """Name settings that were changed and do nothing to single images."""
    changed = name_changes(as_plain(getattr(config, section)), section)
    names = dict.fromkeys(change.partition("=")[0] for change in changed)
    unused = [f"{section}.{name}" for name in names if name.split(".")[0] not in USED[section]]
    if unused:
        log.warning("no effect on a folder of images: %s", ", ".join(unused))


def require_sound(run: RunFolder, unit: Unit) -> None:
    """Refuse files that are not as a stage wrote them."""
    if problems := check_unit(run, unit):
        raise StageError(f"{'; '.join(map(str, problems))}; run {unit.stage} again")
