"""History of a training, the best epoch, and the stopping rule.

Both are functions of the history alone, so a resumed training makes the same decisions.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from tiling.wording import format_duration, format_number, format_percent, pluralize
from wsi_pipeline.config.settings import Monitor
from wsi_pipeline.csv_files import read_csv, write_csv
from wsi_pipeline.errors import TrainingError


@dataclass(frozen=True)
class EpochRecord:
    """One line of ``history.csv``: the same training gives the same numbers, but for `seconds`."""

    epoch: int  # from 1
    lr: float  # learning rate during the epoch
    train_loss: float  # mean over the epoch's batches
    val_loss: float | None  # E: mean binary cross-entropy over the validation patches, if any
    val_roc_auc: float | None  # over the validation patches, if there are any
    train_accuracy: float | None = None  # after the epoch, where training may stop by it
    note: str = ""  # what followed the training pass, such as a push of prototypes
    # Of temperature scaling on the validation patches; None also in histories of earlier versions
    val_temperature: float | None = None  # that divides the logits
    val_loss_calibrated: float | None = None  # E after it
    val_ece: float | None = None  # expected calibration error before it
    val_ece_calibrated: float | None = None  # and after it
    # Wall clock time of the training pass, without validation: differs from run to run.
    seconds: float | None = field(default=None, compare=False)


def best_epoch(history: Sequence[EpochRecord], monitor: Monitor) -> int:
    """Return the epoch whose weights are kept; 0 without any.

    The epoch with the highest ROC AUC or the lowest loss. Among epochs with the same ROC AUC (1.0
    is reached early on easy data), the one with the lowest loss; among equals, the first. Without
    validation, the last.

    Examples
    --------
    >>> history = [EpochRecord(1, 0.1, 0.7, 0.6, 0.8), EpochRecord(2, 0.1, 0.6, 0.5, 0.8)]
    >>> best_epoch(history, "roc_auc"), best_epoch(history, "loss")
    (2, 2)
    """
    if not history:
        return 0
    if monitor == "none":
        return history[-1].epoch
    if monitor == "roc_auc":
        return min(history, key=lambda r: (-figure(r, "roc_auc"), -figure(r, "loss"))).epoch
    return max(history, key=lambda r: figure(r, "loss")).epoch


def figure(record: EpochRecord, monitor: Monitor) -> float:
    """Return the monitored metric such that higher is better; 0 without validation."""
    value = record.val_roc_auc if monitor == "roc_auc" else record.val_loss
    if value is None or monitor == "none":
        return 0.0
    return value if monitor == "roc_auc" else -value


def epochs_without_improvement(history: Sequence[EpochRecord], monitor: Monitor) -> int:
    """Count the epochs since the monitored metric last improved strictly.

    Examples
    --------
    >>> history = [EpochRecord(1, 0.1, 0.7, 0.6, 0.8), EpochRecord(2, 0.1, 0.6, 0.5, 0.8)]
    >>> epochs_without_improvement(history, "roc_auc"), epochs_without_improvement(history, "loss")
    (1, 0)
    """
    figures = [figure(record, monitor) for record in history]
    return history[-1].epoch - history[figures.index(max(figures))].epoch if figures else 0


def stop_reason(
    history: Sequence[EpochRecord],
    *,
    monitor: Monitor,
    patience: int,
    max_epochs: int,
    train_accuracy: float | None = None,
) -> str | None:
    """Describe why training ends here; None if it continues.

    Parameters
    ----------
    history : sequence of EpochRecord
        Epochs whose weights may be kept.
    patience : epochs
        Number of consecutive epochs without a strict improvement.
    train_accuracy : share, optional
        Training ends at this accuracy on the training patches (PatchNet paper 2: 100 %).
    """
    reached = history[-1].train_accuracy if history else None
    if train_accuracy is not None and reached is not None and reached >= train_accuracy:
        return f"{format_percent(reached, 1)} of the training patches are classified correctly"
    stale = epochs_without_improvement(history, monitor)
    if stale >= patience and monitor != "none":
        name = "ROC AUC" if monitor == "roc_auc" else "loss"
        return f"the validation {name} has not improved for {pluralize(stale, 'epoch')}"
    if history and history[-1].epoch >= max_epochs:
        return f"the limit of {pluralize(max_epochs, 'epoch')} is reached"
    return None


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write ``history.csv``: one line per epoch, numbers in full precision."""
    header = [field.name for field in fields(EpochRecord)]
    write_csv(path, header, (astuple(record) for record in history))


def read_history(path: Path) -> list[EpochRecord]:
    """Read what `write_history` has written.

    Raises
    ------
    TrainingError
        If the file cannot be read.
    """
    numbers = {known.name for known in fields(EpochRecord)} - {"epoch", "note"}
    rows = read_csv(path, error=TrainingError)
    try:
        return [
            EpochRecord(
                epoch=int(row["epoch"]),
                note=row.get("note", ""),
                **{name: float(row[name]) for name in numbers if row.get(name)},
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: not the history of a training ({error})") from error


def describe_epoch(
    history: Sequence[EpochRecord],
    candidates: Sequence[EpochRecord],
    *,
    monitor: Monitor,
    max_epochs: int,
) -> str:
    """Describe the last epoch of a history in one line.

    Parameters
    ----------
    history : sequence of EpochRecord
        At least one epoch.
    candidates : sequence of EpochRecord
        Epochs whose weights may be kept.
    monitor : Monitor
        Without one, the last epoch is kept, which needs no words.
    max_epochs : int

    Examples
    --------
    >>> history = [EpochRecord(1, 1e-5, 0.412, 0.39, 0.873, seconds=12.3)]
    >>> describe_epoch(history, history, monitor="roc_auc", max_epochs=5)
    'epoch 1/5: loss 0.412, val loss 0.390, val ROC AUC 0.873, rate 1.0e-05, 12 s, best so far: \
epoch 1'
    """
    record = history[-1]
    parts = [f"loss {format_number(record.train_loss)}"]
    if record.val_loss is not None:
        parts.append(f"val loss {format_number(record.val_loss)}")
    if record.val_roc_auc is not None:
        parts.append(f"val ROC AUC {format_number(record.val_roc_auc)}")
    if record.train_accuracy is not None:
        parts.append(f"train accuracy {format_percent(record.train_accuracy, 1)}")
    parts.append(f"rate {record.lr:.1e}")
    if record.seconds is not None:
        parts.append(format_duration(record.seconds))
    if monitor != "none" and candidates:
        parts.append(f"best so far: epoch {best_epoch(candidates, monitor)}")
    return f"epoch {record.epoch}/{max_epochs}: {', '.join(parts)}"


def describe_validation(record: EpochRecord) -> str:
    """Describe the validation metrics of an epoch."""
    if record.val_loss is None or record.val_roc_auc is None:
        return "no validation"
    loss, auc = format_number(record.val_loss, 4), format_number(record.val_roc_auc, 4)
    return f"validation loss {loss}, ROC AUC {auc}"
