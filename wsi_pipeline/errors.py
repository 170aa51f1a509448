"""What can go wrong in the pipeline; each message says what is wrong, the value, the cure."""

from tiling.errors import ExpectedError


class PipelineError(ExpectedError):
    """Base of every error this package raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class ManifestError(PipelineError, ValueError):
    """The data set is not what a manifest may be: ids, labels, patients, splits, paths."""


class SamplingError(PipelineError, ValueError):
    """There is nothing to draw from, for example a class without patches."""


class ModelError(PipelineError, ValueError):
    """A model cannot be built or fed with what was given."""


class CheckpointError(PipelineError, OSError):
    """A checkpoint is missing, damaged, or made for something else."""


class TrainingError(PipelineError, RuntimeError):
    """Training cannot start or go on."""


class InferenceError(PipelineError, RuntimeError):
    """Prediction cannot start or go on."""


class ScoresError(PipelineError, OSError):
    """A score file is missing, damaged or not ours."""


class HeatmapError(PipelineError, ValueError):
    """Scores cannot be laid out as a heatmap."""


class EvaluationError(PipelineError, ValueError):
    """Scores and reference do not fit together."""


class ExtentError(EvaluationError):
    """Polygons cover more than can be drawn."""


class ReportError(PipelineError, ValueError):
    """There is nothing to report on."""


class StageError(PipelineError, RuntimeError):
    """A stage cannot run: its input is missing, or a worker was lost."""
