"""A picture of a training: losses, ROC AUC and learning rate by epoch."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tiling.files import write_aside
from wsi_pipeline.training.history import EpochRecord


def draw_curves(path: Path, history: Sequence[EpochRecord], *, title: str, best: int) -> None:
    """Draw the training curves as a PNG.

    Parameters
    ----------
    history : sequence of EpochRecord
        At least one epoch.
    best : int
        The epoch whose weights are kept; marked by a line.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    losses, auc, rate = figure.subplots(1, 3)
    epochs = [record.epoch for record in history]
    marker = "o" if len(history) <= 50 else ""
    losses.plot(epochs, [r.train_loss for r in history], marker=marker, ms=3, label="train")
    validated = [r for r in history if r.val_loss is not None]
    if validated:
        with_loss = [r.epoch for r in validated]
        losses.plot(
            with_loss, [r.val_loss for r in validated], marker=marker, ms=3, label="validation"
        )
    _finish(losses, "loss (cross-entropy)", best)
    losses.legend(frameon=False)
    auc.plot(
        [r.epoch for r in validated],
        [r.val_roc_auc for r in validated],
        marker=marker,
        ms=3,
        color="tab:green",
    )
    _finish(auc, "ROC AUC (validation)", best)
    rate.step(epochs, [r.lr for r in history], where="mid", color="tab:gray")
    rate.set_yscale("log")
    _finish(rate, "learning rate", best)
    figure.suptitle(f"{title}: weights of epoch {best} kept")
    with write_aside(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)


def _finish(axes: Axes, label: str, best: int) -> None:
    axes.axvline(best, color="black", lw=0.8, ls=":")
    axes.set_title(label, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
