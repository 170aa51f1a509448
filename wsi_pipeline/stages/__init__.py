"""The stages of a run, a file for each line of `wsi_pipeline.config.stages.STAGES`."""

from importlib import import_module
from typing import Protocol

from wsi_pipeline.config.reading import Config
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.run.runner import Options, StageResult


class StageFunction(Protocol):
    """What a stage's file holds under the stage's name."""

    def __call__(
        self, run: RunFolder, config: Config, options: Options, **how: object
    ) -> StageResult | list[StageResult]:
        """Do what is not finished; the keywords are the stage's own.

        A stage with variants takes their ``names``, and gives a result for each.
        """


def load_stage(name: str) -> StageFunction:
    """Import the function of a stage."""
    function: StageFunction = getattr(import_module(f"wsi_pipeline.stages.{name}"), name)
    return function
