"""Summary of a training."""

from dataclasses import dataclass
from pathlib import Path

from tiling.wording import format_duration, pluralize
from wsi_pipeline.training.history import EpochRecord, describe_validation

STARVED = 0.2  # share of the time spent waiting for patches from which a remedy is named


@dataclass(frozen=True)
class TrainSummary:
    """Summary of a training."""

    checkpoint: Path
    epochs: int  #: done in all
    resumed_from: int  #: epochs done by an earlier, interrupted training
    best: EpochRecord  #: the epoch whose weights are kept
    stopped: str  #: why, in words
    seconds: float  #: of this process
    seconds_waited: float  #: of these the device waited for patches
    files: tuple[Path, ...] = ()  #: all outputs

    @property
    def starved(self) -> bool:
        """Whether the device waited for patches for a large part of the time."""
        return self.seconds_waited > max(STARVED * self.seconds, 1.0)

    def __str__(self) -> str:
        again = f" (resumed after {self.resumed_from})" if self.resumed_from else ""
        text = (
            f"{pluralize(self.epochs, 'epoch')}{again} in {format_duration(self.seconds)}, "
            f"{self.stopped}; kept epoch {self.best.epoch}: {describe_validation(self.best)}; "
            f"waited {format_duration(self.seconds_waited)} for patches"
        )
        if self.starved:
            text += (
                ": the device is starved of data; raise train.<model>.readers, use a faster disk, "
                "or tile with tile.store=patches if patches are read from the slides"
            )
        return text
