"""The run folder: paths of the files of a run, and names of its units of work."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tiling.urls import as_path
from wsi_pipeline.errors import StageError
from wsi_pipeline.names import check_name, find_name_problem


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    def __post_init__(self) -> None:
        """Take a URL as one, also where `Path` has joined its slashes."""
        object.__setattr__(self, "path", as_path(self.path))

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
        """Folder of the label audit of all stores."""
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

    def image_scores(self, model: str) -> Path:
        """Folder with the score table of single images."""
        return self.path / "scores" / model

    def journal(self, model: str, slide_id: str) -> Path:
        """Scored batches of a slide whose prediction is unfinished."""
        return self.path / ".state" / "journals" / model / f"{slide_id}.scores"

    def heatmap(self, model: str, slide_id: str) -> Path:
        """Heatmap values of a slide."""
        return self.path / "heatmaps" / model / f"{slide_id}.ome.tif"

    def image_maps(self, model: str) -> Path:
        """Folder with the maps of single images."""
        return self.path / "heatmaps" / model

    def overlay(self, model: str, slide_id: str) -> Path:
        """Picture of a slide's heatmap."""
        return self.path / "heatmaps" / model / f"{slide_id}.png"

    def method_map(self, model: str, slide_id: str, name: str) -> Path:
        """Map of a slide by an explanation method, or by one of its parts."""
        return self.path / "heatmaps" / model / f"{slide_id}.{name}.ome.tif"

    def method_overlay(self, model: str, slide_id: str, name: str) -> Path:
        """Picture of the map of a slide by an explanation method."""
        return self.path / "heatmaps" / model / f"{slide_id}.{name}.png"

    def explanations(self, model: str) -> Path:
        """Folder of a model's explained patches or images."""
        return self.path / "explanations" / model

    def figures(self, model: str) -> Path:
        """Figures for papers."""
        return self.path / "figures" / model

    def evaluation(self, model: str) -> Path:
        """Folder of a model's evaluation."""
        return self.path / "evaluation" / model

    def review(self, slide_id: str) -> Path:
        """What a person thought of a slide's patches and regions."""
        return self.path / "review" / f"{slide_id}.geojson"

    def reviewed(self, slide_ids: Iterable[str]) -> list[str]:
        """Those of the slides that have a review."""
        return [slide_id for slide_id in slide_ids if self.review(slide_id).is_file()]

    def exports(self, name: str, model: str) -> Path:
        """Folder of a model's scores in another tool's format."""
        return self.path / "exports" / name / model

    def unit_of(self, path: Path) -> "Unit | None":
        """Find the unit that writes a patch store or score file; None for other files."""
        try:
            parts = path.relative_to(self.path).parts
        except ValueError:
            return None
        if parts[:1] == ("tiles",) and len(parts) == 2:
            return Unit("tile", path.name.removesuffix(".zarr"))
        if parts[:1] == ("scores",) and len(parts) == 3:
            return Unit("predict", path.name.removesuffix(".h5"), parts[1])
        return None

    def models_with(self, folder: str) -> list[str]:
        """Names of the models with files under ``folder/``, e.g. ``scores``."""
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
    variant: str = ""  # one of several outputs of the stage for one input

    def __post_init__(self) -> None:
        """Refuse names that are not valid file names: all work goes through units."""
        for name in filter(None, (self.stage, self.slide_id, self.model, self.variant)):
            check_name(name, "name", error=StageError)

    @property
    def name(self) -> str:
        """The slide, or else the model, or else the run."""
        return self.slide_id or self.model or "run"

    @property
    def title(self) -> str:
        """Name for messages: the slide, and the model if there is one."""
        return f"{self.slide_id} by {self.model}" if self.slide_id and self.model else self.name

    def is_marked(self, run: RunFolder) -> bool:
        """Whether it was finished, up to date or not."""
        return self.mark(run, "done").is_file()

    def mark(self, run: RunFolder, kind: Literal["done", "failed", "earlier"]) -> Path:
        """Path of this unit's state; ``earlier``: list of the files it wrote before."""
        return (
            run.path
            / ".state"
            / self.stage
            / self.variant
            / self.model
            / f"{self.name}.{kind}.json"
        )
