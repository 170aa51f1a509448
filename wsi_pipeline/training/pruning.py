"""Which prototypes are of a class: those whose nearest training patches are.

A prototype that lies nearest to patches of the other class, often background, says little of its
own, and is dropped.

References
----------
.. [1] Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition",
   NeurIPS 2019, supplement on pruning: a prototype is dropped if fewer than 3 of its 6 nearest
   training patches are of its class (k and tau in their code).
"""

from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import TrainingError

NEAREST = 6  # [1]
LEAST = 3  # [1]


@dataclass(frozen=True)
class Judged:
    """One prototype and its nearest training patches."""

    prototype: int  # its number before pruning
    label: int  # its class
    nearest: int  # patches looked at
    of_its_class: int  # of these
    farthest: float  # distance of the last of these
    kept: bool
    reason: str  # of dropping it, or of keeping it against the rule; else empty

    @classmethod
    def header(cls) -> list[str]:
        """Return the names of the columns of `row`."""
        return [field.name for field in fields(cls)]

    def row(self) -> list[object]:
        """Return a row of a table; `kept` as 1 or 0."""
        return [int(value) if isinstance(value, bool) else value for value in astuple(self)]


def choose_kept(
    distances: NDArray[np.floating],
    labels: NDArray[np.integer],
    prototype_class: NDArray[np.integer],
    *,
    nearest: int = NEAREST,
    least: int = LEAST,
) -> tuple[NDArray[np.bool_], list[Judged]]:
    """Choose the prototypes to keep.

    An image counts once, by its nearest patch, as in the published code: neighbouring patches of
    one image overlap almost wholly, so that six of them would be one observation. Of equal
    distances the earlier image is nearer. A class whose prototypes would all be dropped keeps the
    one with the most patches of its class (of these the one with the nearer patches): without any,
    its images could not be explained by what they look like.

    Parameters
    ----------
    distances : (N, P)
        Smallest squared distance of each training image to each prototype.
    labels : (N,) 0 or 1
    prototype_class : (P,) 0 or 1
    nearest : int
        Patches to look at; fewer where there are fewer images.
    least : int
        So many of them must be of the prototype's class.

    Returns
    -------
    kept : (P,) bool
    judged : list of Judged
        One for each prototype, in their order.

    Raises
    ------
    TrainingError
        If shapes do not match, distances are not finite, there are fewer images than `least`, or
        not 1 <= least <= nearest.
    """
    values, owners, classes = np.asarray(distances), np.asarray(labels), np.asarray(prototype_class)
    _check(values, owners, classes, nearest, least)
    order = np.argsort(values, axis=0, kind="stable")[:nearest]  # (nearest, P) images
    own = (owners[order] == classes).sum(axis=0)
    farthest = np.take_along_axis(values, order, axis=0)[-1]
    kept = own >= least
    last = {
        label: _find_last(label, own, farthest, classes, kept) for label in set(classes.tolist())
    }
    judged = []
    for number, label in enumerate(classes.tolist()):
        few = f"{own[number]} of the {len(order)} nearest training patches are of class {label}"
        is_last = last[label] == number
        reason = "" if kept[number] else f"only {few}"
        if is_last:
            reason += "; kept as the best of its class, of which all would be dropped"
        judged.append(
            Judged(
                number,
                label,
                len(order),
                int(own[number]),
                float(farthest[number]),
                bool(kept[number]) or is_last,
                reason,
            )
        )
    return np.array([one.kept for one in judged]), judged


def _find_last(
    label: int,
    own: NDArray[np.integer],
    farthest: NDArray[np.floating],
    classes: NDArray[np.integer],
    kept: NDArray[np.bool_],
) -> int | None:
    """Find the prototype that stays although its class would lose all; None: it does not."""
    numbers = np.flatnonzero(classes == label)
    if kept[numbers].any():
        return None
    return int(numbers[np.lexsort((farthest[numbers], -own[numbers]))[0]])


def _check(
    distances: NDArray[np.floating],
    labels: NDArray[np.integer],
    classes: NDArray[np.integer],
    nearest: int,
    least: int,
) -> None:
    shapes = distances.shape, labels.shape, classes.shape
    if distances.ndim != 2 or shapes[1:] != (shapes[0][:1], shapes[0][1:]) or not classes.size:
        raise TrainingError(
            "pruning needs distances (N, P), labels (N,) and classes of prototypes (P,), got "
            f"shapes {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    if not np.isfinite(distances).all():
        raise TrainingError(
            f"{np.sum(~np.isfinite(distances))} of {distances.size} distances to prototypes are "
            "not finite; the network may have diverged: train with a lower learning rate"
        )
    if not 1 <= least <= nearest:
        raise TrainingError(
            f"pruning keeps prototypes with 1 to nearest patches of their class, got least={least} "
            f"of nearest={nearest}"
        )
    if len(labels) < least:
        raise TrainingError(
            f"pruning needs at least {least} training images, got {len(labels)}; train without it"
        )
