"""Exceptions of the pipeline. Each message states the problem, the value and the remedy."""

from tiling.errors import ExpectedError


class PipelineError(ExpectedError):
    """Base of every error this package raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class ManifestError(PipelineError, ValueError):
    """A manifest is invalid: ids, labels, patients, splits or paths."""


class ReviewError(PipelineError, ValueError):
    """A review is damaged."""


class SamplingError(PipelineError, ValueError):
    """There is nothing to sample, for example a class has no patches."""


class ModelError(PipelineError, ValueError):
    """A model cannot be built, or does not accept the input."""


class StainError(PipelineError, ValueError):
    """The stains of an image cannot be found."""


class CheckpointError(PipelineError, OSError):
    """A checkpoint is missing, damaged, or made for something else."""


class TrainingError(PipelineError, RuntimeError):
    """Training cannot start or continue."""


class InferenceError(PipelineError, RuntimeError):
    """Prediction cannot start or continue."""


class ScoresError(PipelineError, OSError):
    """A score file is missing, damaged or of another program."""


class HeatmapError(PipelineError, ValueError):
    """Scores cannot be arranged as a heatmap."""


class EvaluationError(PipelineError, ValueError):
    """Scores and reference do not fit together."""


class ExtentError(EvaluationError):
    """Polygons cover too large an area to rasterise."""


class ReportError(PipelineError, ValueError):
    """There is nothing to report on."""


class StageError(PipelineError, RuntimeError):
    """A stage cannot run: its input is missing, or a worker was lost."""


class ViewError(PipelineError, ValueError):
    """What the viewer is asked for is not there."""


class SchedulerLostError(StageError):
    """The connection to a Dask scheduler was lost.

    Parameters
    ----------
    place : str
        Its address.
    """

    kept = ""  # what is kept, for the message
    exit_code = 1  # of the command; 3 if something was finished

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place

    def __str__(self) -> str:
        return (
            f"the scheduler at {self.place} was lost{self.kept}; start it again and run the same "
            "command"
        )
