"""TensorBoard event files of a training: its history, to be watched while it grows."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wsi_pipeline.training.history import EpochRecord

FOLDER = "tensorboard"  # in the folder of the model


_NAMES = "events.out.tfevents.*"


def has_event_files(folder: Path) -> bool:
    """Whether a training was logged."""
    return any(folder.glob(_NAMES))


def remove_event_files(folder: Path) -> None:
    """Remove the event files of an earlier training, and nothing else."""
    for path in folder.glob(_NAMES):
        path.unlink(missing_ok=True)


class EventFiles:
    """Writes an event file; closed at the end of a ``with`` block.

    The file starts with the epochs that are done: of a resumed training it replaces the earlier
    one, so that no epoch is in it twice, also where one was interrupted or not logged.
    """

    def __init__(self, folder: Path, history: Sequence[EpochRecord]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        remove_event_files(folder)
        self._writer: Any = SummaryWriter(folder)  # its types are not declared
        for record in history:
            self.add(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def add(self, record: EpochRecord) -> None:
        """Write an epoch, for a reader to see at once."""
        for name, value in name_scalars(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()


def name_scalars(record: EpochRecord) -> dict[str, float]:
    """Name the figures of an epoch; those that there are.

    Examples
    --------
    >>> name_scalars(EpochRecord(1, 1e-5, 0.5, None, None, seconds=12.0))
    {'loss/train': 0.5, 'rate': 1e-05}
    """
    values = {
        "loss/train": record.train_loss,
        "loss/val": record.val_loss,
        "roc_auc/val": record.val_roc_auc,
        "accuracy/train": record.train_accuracy,
        "rate": record.lr,
    }
    return {name: value for name, value in values.items() if value is not None}
