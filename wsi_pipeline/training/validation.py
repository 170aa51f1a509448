"""What the logits of validation patches say of an epoch."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from wsi_pipeline.training.calibration import calibration_figures, fit_logit_temperature
from wsi_pipeline.training.history import EpochRecord


def measure_validation(
    record: EpochRecord, label: NDArray[np.int8], logits: NDArray[np.float64]
) -> EpochRecord:
    """Add the validation loss E (mean cross-entropy), ROC AUC and calibration to a record.

    Parameters
    ----------
    record : EpochRecord
    label : (n,) int8
        0 and 1; both are there.
    logits : (n,) float64
        Finite.
    """
    temperature = fit_logit_temperature(label, logits)
    assert temperature is not None  # there are patches of both classes
    (loss, ece), (scaled_loss, scaled_ece) = (
        _measure_calibration(label, z) for z in (logits, logits / temperature)
    )
    return replace(
        record,
        val_loss=loss,
        val_roc_auc=float(roc_auc_score(label, logits)),
        val_temperature=temperature,
        val_loss_calibrated=scaled_loss,
        val_ece=ece,
        val_ece_calibrated=scaled_ece,
    )


def _measure_calibration(
    label: NDArray[np.int8], logits: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the mean cross-entropy and the expected calibration error."""
    z = torch.from_numpy(logits)
    loss = F.binary_cross_entropy_with_logits(z, torch.from_numpy(label.astype(np.float64)))
    curve = calibration_figures(label, z.sigmoid().numpy())
    assert curve is not None
    return float(loss), curve.ece
