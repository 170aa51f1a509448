"""The run folder: where each file lives (contract 4), and what is finished in it.

An output counts as finished when its mark says so. A mark is a small JSON file under ``.state/``,
written last, that holds the fingerprint of the settings and inputs that made the output and the
sizes of its files. Whoever makes the output again first turns the mark into a list of what was
made, so that no file of other settings is left beside the new ones. Marks are one per slide, so
shards of a job array share a run folder without locks.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tiling.files import write_json
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import StageError
from wsi_pipeline.manifest import read_manifest
from wsi_pipeline.names import check_name, find_name_problem

log = logging.getLogger(__name__)

State = Literal["missing", "stale", "finished"]
FAILURE_COLUMNS = ("slide_id", "stage", "error", "message")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def manifest(self) -> Path:
        """The manifest as used."""
        return self.path / "slides.csv"

    @property
    def images(self) -> Path:
        """The images as used, of a run on a folder of images."""
        return self.path / "images.csv"

    @property
    def failures(self) -> Path:
        """What failed, one line each."""
        return self.path / "failures.csv"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def tiles(self) -> Path:
        """Folder of the patch stores."""
        return self.path / "tiles"

    @property
    def logs(self) -> Path:
        """Folder of the tracebacks."""
        return self.path / "logs"

    def store(self, slide_id: str) -> Path:
        """Patch store of a slide."""
        return self.tiles / f"{slide_id}.zarr"

    def qc(self, slide_id: str) -> Path:
        """Picture of a slide's tissue mask, grid and labels."""
        return self.tiles / f"{slide_id}.png"

    def content(self, slide_id: str) -> Path:
        """Digest of a slide's files, kept so that they are not read again while unchanged."""
        return self.path / ".state" / "content" / f"{slide_id}.digest"

    @property
    def label_audit(self) -> Path:
        """Folder of what all stores say of the labels."""
        return self.tiles / "label_audit"

    def model(self, model: str) -> Path:
        """Folder of a trained model."""
        return self.path / "models" / model

    def checkpoint(self, model: str) -> Path:
        """Checkpoint of a trained model."""
        return self.model(model) / "checkpoint.safetensors"

    def scores(self, model: str, slide_id: str) -> Path:
        """Score file of a slide."""
        return self.path / "scores" / model / f"{slide_id}.h5"

    def journal(self, model: str, slide_id: str) -> Path:
        """Batches done of a slide whose prediction is under way."""
        return self.path / ".state" / "journals" / model / f"{slide_id}.scores"

    def heatmap(self, model: str, slide_id: str) -> Path:
        """Heatmap values of a slide."""
        return self.path / "heatmaps" / model / f"{slide_id}.ome.tif"

    def overlay(self, model: str, slide_id: str) -> Path:
        """Picture of a slide's heatmap."""
        return self.path / "heatmaps" / model / f"{slide_id}.png"

    def dense_map(self, model: str, slide_id: str) -> Path:
        """PatchNet's own map of a slide."""
        return self.path / "heatmaps" / model / f"{slide_id}.dense.ome.tif"

    def dense_overlay(self, model: str, slide_id: str) -> Path:
        """Picture of PatchNet's own map of a slide."""
        return self.path / "heatmaps" / model / f"{slide_id}.dense.png"

    def figures(self, model: str) -> Path:
        """Figures for papers."""
        return self.path / "figures" / model

    def evaluation(self, model: str) -> Path:
        """Folder of a model's figures."""
        return self.path / "evaluation" / model

    def exports(self, name: str, model: str) -> Path:
        """Folder of a model's scores in another tool's format."""
        return self.path / "exports" / name / model

    def output_folders(self) -> list[Path]:
        """List the folders that stages write into; the insides of stores are not among them."""
        parents = [
            self.path / name for name in ("models", "scores", "heatmaps", "evaluation", "figures")
        ]
        of_models = [path for parent in parents for path in parent.glob("*") if path.is_dir()]
        for pattern in ("exports/*", "exports/*/*"):
            of_models += [path for path in self.path.glob(pattern) if path.is_dir()]
        states = [path for path in (self.path / ".state").rglob("*") if path.is_dir()]
        return [self.path, self.tiles, self.logs, *of_models, *states]

    def read_manifest(self) -> list[SlideEntry]:
        """Read the manifest as used.

        Raises
        ------
        StageError
            If this is no run folder.
        """
        if self.images.is_file():
            raise StageError(
                f"{self.path}: a run on a folder of images; this is for runs on slides "
                "(docs/images_folder.md says what there is for images)"
            )
        if not self.manifest.is_file():
            raise StageError(
                f"{self.path}: not a run folder (it has no slides.csv); "
                f"make one with: wsi-pipeline tile INPUT --out {self.path}"
            )
        return read_manifest(self.manifest)

    def models_with(self, folder: str) -> list[str]:
        """Names of the models that have something under ``folder/``, e.g. ``scores``."""
        parent = self.path / folder
        if not parent.is_dir():
            return []
        names = (p.name for p in parent.iterdir() if p.is_dir() and any(p.iterdir()))
        return sorted(name for name in names if not find_name_problem(name))  # others are not ours


@dataclass(frozen=True)
class Unit:
    """One piece of work: a stage on a slide, on a model, or on a slide with a model."""

    stage: str
    slide_id: str = ""
    model: str = ""
    variant: str = ""  # which of several outputs that the stage makes of one input

    def __post_init__(self) -> None:
        """Refuse names that would lead out of their folders: all work goes through units."""
        for name in filter(None, (self.stage, self.slide_id, self.model, self.variant)):
            check_name(name, "name", error=StageError)

    @property
    def name(self) -> str:
        """The slide, or else the model, or else the run."""
        return self.slide_id or self.model or "run"

    @property
    def title(self) -> str:
        """What a person calls it: the slide, and the model at work on it."""
        return f"{self.slide_id} by {self.model}" if self.slide_id and self.model else self.name

    def mark(self, run: RunFolder, kind: Literal["done", "failed", "earlier"]) -> Path:
        """Where the state of this unit is kept; ``earlier``: which files it made before."""
        return (
            run.path
            / ".state"
            / self.stage
            / self.variant
            / self.model
            / f"{self.name}.{kind}.json"
        )


def unit_state(run: RunFolder, unit: Unit, fingerprint: str) -> State:
    """Tell whether a unit's output is there, whole, and made from what there is now."""
    try:
        mark = json.loads(unit.mark(run, "done").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return "missing"
    if mark["fingerprint"] != fingerprint:
        return "stale"
    whole = all(_size(marked_file(run, name)) == size for name, size in mark["files"].items())
    return "finished" if whole else "missing"


def marked_file(run: RunFolder, name: str) -> Path:
    """Where a file of a mark is; by its name, as it was written: RUN may be a link."""
    return Path(os.path.normpath(run.path / name))


def _size(path: Path) -> int | None:
    """Tell the bytes of a file, or of all files in a Zarr folder; None where there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else None


def list_files(folder: Path) -> list[Path]:
    """List all files under a folder but scratch files."""
    found = sorted(folder.rglob("*"))
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def mark_finished(run: RunFolder, unit: Unit, fingerprint: str, files: Sequence[Path]) -> None:
    """Say that a unit's files are whole; forget that it ever failed, and what it made before."""
    # An export may lie outside the run folder.
    sizes = {Path(os.path.relpath(path, run.path)).as_posix(): _size(path) for path in files}
    absent = [name for name, size in sizes.items() if size is None]
    if absent:
        raise StageError(f"{unit.name}: {unit.stage} ended without writing {', '.join(absent)}")
    _remove_earlier(run, unit, list(sizes))
    write_json(unit.mark(run, "done"), {"fingerprint": fingerprint, "files": sizes})
    unit.mark(run, "failed").unlink(missing_ok=True)
    unit.mark(run, "earlier").unlink(missing_ok=True)


def clear_mark(run: RunFolder, unit: Unit) -> None:
    """Forget that a unit was finished, before its output is touched; keep which files it made."""
    done, earlier = unit.mark(run, "done"), unit.mark(run, "earlier")
    made = {*_marked_names(done), *_marked_names(earlier)}
    if made:
        write_json(earlier, {"files": sorted(made)})
    done.unlink(missing_ok=True)


def _marked_names(mark: Path) -> list[str]:
    try:
        return list(json.loads(mark.read_text(encoding="utf-8"))["files"])
    except (FileNotFoundError, json.JSONDecodeError):
        return []


def _remove_earlier(run: RunFolder, unit: Unit, names: Sequence[str]) -> None:
    """Remove what a unit made under other settings and has not made again, beside what it made.

    Only in the run folder, and nothing that another unit has made since.
    """
    folders = {PurePosixPath(name).parent for name in names}
    left = [
        name
        for name in set(_marked_names(unit.mark(run, "earlier"))) - set(names)
        if PurePosixPath(name).parent in folders
        and not name.startswith("../")
        and marked_file(run, name).is_file()
    ]
    if not left:
        return
    marks = unit.mark(run, "done").parent.glob("*.done.json")
    others = {name for mark in marks for name in _marked_names(mark)}
    for name in left:
        if name not in others:
            log.debug("%s: removed %s, made under other settings", unit.title, name)
            marked_file(run, name).unlink(missing_ok=True)


def record_failure(run: RunFolder, unit: Unit, error: str, message: str) -> None:
    """Keep why a unit failed."""
    record = {"slide_id": unit.name, "stage": unit.stage, "error": error, "message": message}
    write_json(unit.mark(run, "failed"), record)


def iterate_failures(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield the recorded failures, ordered by stage and slide."""
    for path in sorted((run.path / ".state").rglob("*.failed.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def forget_failures(run: RunFolder, stages: Sequence[str], *, listed: Sequence[str]) -> None:
    """Forget the failures of slides that the manifest no longer lists."""
    for stage in stages:
        for path in (run.path / ".state" / stage).rglob("*.failed.json"):
            if path.name.removesuffix(".failed.json") not in listed:
                path.unlink(missing_ok=True)


def write_failures(run: RunFolder) -> int:
    """Write ``failures.csv`` from all recorded failures; returns how many there are."""
    rows = list(iterate_failures(run))
    write_csv(
        run.failures, FAILURE_COLUMNS, ([row[name] for name in FAILURE_COLUMNS] for row in rows)
    )
    run.logs.mkdir(exist_ok=True)  # where failures.csv sends its readers
    return len(rows)


def mark_shard(
    run: RunFolder, stage: str, index: int, count: int, *, settings: str, ended: bool
) -> None:
    """Keep that one task of a job array has begun, or has come to its end, under some settings."""
    path = run.path / ".state" / stage / "shards" / f"{index}-of-{count}.json"
    write_json(path, {"index": index, "count": count, "settings": settings, "ended": ended})


def forget_shards(run: RunFolder, stage: str) -> None:
    """Forget earlier job arrays: the whole stage has been run in one piece."""
    for path in (run.path / ".state" / stage / "shards").glob("*-of-*.json"):
        path.unlink(missing_ok=True)


def missing_shards(run: RunFolder, stage: str) -> tuple[int, list[int]]:
    """Tell the size of the latest job array of a stage, and which of its tasks never ended.

    The latest is that of the task that was marked last; tasks of another size or of other
    settings belong to an earlier one.
    """
    paths = sorted(
        (run.path / ".state" / stage / "shards").glob("*-of-*.json"),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
    )
    shards = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not shards:
        return 0, []
    count, settings = shards[-1]["count"], shards[-1]["settings"]
    ended = {
        s["index"]
        for s in shards
        if s["ended"] and s["count"] == count and s["settings"] == settings
    }
    return count, [index for index in range(count) if index not in ended]
