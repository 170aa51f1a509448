"""The stages of a run, in order: the one list.

A stage is a line here and a module of the same name in `wsi_pipeline.stages`, with a function of
the same name. The list determines the commands and their help, the order of ``run``, the stages
that job arrays can divide, what ``collect`` expects, and the stage of each recalled setting.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tiling.urls import is_url, refuse


@dataclass(frozen=True)
class Stage:
    """Description of a stage, without its code."""

    name: str
    summary: str  # help of its command
    # One unit of work. Units of single slides can be divided among the tasks of a job array.
    unit: Literal["slide", "model", "slide and model", "run"]
    sections: tuple[str, ...] = ()  # its sections of the config, in addition to that of its name
    folder: str = ""  # in the run folder; contains one folder per model
    output: str = ""  # what it writes, in the run folder
    reads_scores: bool = False  # slides without scores are not expected
    reads: tuple[str, ...] = ()  # further settings of the run that it uses
    # Why its run folder must be on a file system; empty: it may be at a URL (docs/storage.md).
    needs_files: str = ""
    variants: str = ""  # setting that lists the outputs per unit; their settings are not recalled

    @property
    def is_shardable(self) -> bool:
        """Whether the tasks of a job array may share it."""
        return "slide" in self.unit


STAGES = (
    Stage(
        "tile",
        "Cut slides into labelled patches: slides -> patch stores.",
        "slide",
        sections=("splits", "images"),
        output="tiles",
    ),
    Stage(
        "train",
        "Train classifiers: patch stores, or single images -> checkpoints.",
        "model",
        reads=("seed",),
        output="models",
        needs_files="training reads patches one by one in random order, and replaces its "
        "checkpoints by renaming",
    ),
    Stage(
        "predict",
        "Score patches or single images: patch stores, slides, or images -> scores.",
        "slide and model",
        folder="scores",
        output="scores",
    ),
    Stage(
        "heatmap",
        "Stitch scores into slide heatmaps: OME-TIFF values, overlay pictures; map single images.",
        "slide and model",
        folder="heatmaps",
        output="heatmaps",
        reads_scores=True,
    ),
    Stage(
        "explain",
        "Map where models look, by several methods: scores and checkpoints -> explanations.",
        "model",
        folder="explanations",
        reads=("evaluate",),
        output="explanations",
        variants="methods",
    ),
    Stage(
        "evaluate",
        "Compare scores with the reference: slide level, patches, FROC by both definitions.",
        "model",
        reads=("heatmap",),
        output="evaluation",
    ),
    Stage(
        "export",
        "Write scores and heatmaps in other tools' formats: QuPath, WSInfer, CLAM, OME-Zarr, ...",
        "slide and model",
        reads=("heatmap", "evaluate"),
        output="exports",
        reads_scores=True,
        variants="formats",
    ),
    Stage("report", "Write one self-contained HTML report.", "run", output="report.html"),
)


def find_stage(name: str) -> Stage:
    """Find a stage by its name.

    Raises
    ------
    KeyError
        If there is none.
    """
    return {stage.name: stage for stage in STAGES}[name]


def check_run_folder(stage: str, path: Path) -> None:
    """Check that a stage can work in a run folder at a URL.

    Raises
    ------
    LocalOnlyError
        If it needs a file system.
    """
    reason = find_stage(stage).needs_files
    if reason and is_url(path):
        refuse(path, f"{stage} needs a run folder on a file system ({reason})")
