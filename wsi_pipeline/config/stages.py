"""The stages of a run, in order: the one list.

A stage is a line here and a file of its name in `wsi_pipeline.stages`, with a function of its name.
From the list follow the commands and their help, the order of ``run``, which stages a job array
may share, what ``collect`` expects, and of which stage a run recalls each setting.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """A stage, as all who need not run it see it."""

    name: str
    summary: str  # help of its command
    # What one unit of work is. Those of single slides may be shared by the tasks of a job array.
    unit: Literal["slide", "model", "slide and model", "run"]
    sections: tuple[str, ...] = ()  # sections of the config that are its own, besides its name's
    folder: str = ""  # of the run folder, with a folder for each model in it
    reads_scores: bool = False  # so that slides without scores are not expected
    variants: str = ""  # setting that lists what it makes of each unit; each is told anew

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
    ),
    Stage("train", "Train classifiers: patch stores, or single images -> checkpoints.", "model"),
    Stage(
        "predict",
        "Score patches or single images: patch stores, slides, or images -> scores.",
        "slide and model",
        folder="scores",
    ),
    Stage(
        "heatmap",
        "Stitch scores into slide heatmaps: OME-TIFF values, overlay pictures; map single images.",
        "slide and model",
        folder="heatmaps",
        reads_scores=True,
    ),
    Stage(
        "evaluate",
        "Compare scores with the reference: slide level, patches, FROC by both definitions.",
        "model",
    ),
    Stage(
        "export",
        "Write scores and heatmaps in other tools' formats: QuPath, WSInfer, CLAM, OME-Zarr, ...",
        "slide and model",
        reads_scores=True,
        variants="formats",
    ),
    Stage("report", "Write one self-contained HTML report.", "run"),
)


def find_stage(name: str) -> Stage:
    """Find a stage by its name.

    Raises
    ------
    KeyError
        If there is none.
    """
    return {stage.name: stage for stage in STAGES}[name]
