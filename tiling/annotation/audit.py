"""Looking labels over: how many there are, how large the shares, which are least certain.

Pure counting on a store's arrays; nothing here opens a file or reads a pixel.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Group = Literal["positive", "negative", "ignored"]
GROUPS: tuple[Group, ...] = ("positive", "negative", "ignored")
N_BINS = 20  # of the shares strictly between 0 and 1; 0 and 1 have one each
NEIGHBOURS = 8  # of a square in a grid of squares


@dataclass(frozen=True)
class LabelCounts:
    """How many patches carry which label. `unreadable` ones are counted under their label too."""

    patches: int = 0
    positive: int = 0
    negative: int = 0
    ignored: int = 0  # -1 by the rule: a share between its bounds
    unlabelled: int = 0  # -1, since the slide has no annotation
    unreadable: int = 0

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        names = LabelCounts.__dataclass_fields__
        return LabelCounts(*(getattr(self, name) + getattr(other, name) for name in names))


def split_labels(
    label: NDArray[np.int8], tumour: NDArray[np.float32]
) -> dict[Group, NDArray[np.bool_]]:
    """Assign patches to groups, (N,) bool each; those of unannotated slides are in none.

    Parameters
    ----------
    label : (N,) 1, 0, -1
    tumour : (N,) in [0, 1]
        Share of the inner square: above 0 for patches that a rule ignores; 0 without an
        annotation.
    """
    return {
        "positive": label == 1,
        "negative": label == 0,
        "ignored": (label == -1) & (tumour > 0),
    }


def count_labels(
    label: NDArray[np.int8], tumour: NDArray[np.float32], unreadable: NDArray[np.bool_]
) -> LabelCounts:
    """Count the patches of one slide, arrays (N,)."""
    sizes = {name: int(mask.sum()) for name, mask in split_labels(label, tumour).items()}
    unlabelled = len(label) - sum(sizes.values())
    return LabelCounts(
        patches=len(label), **sizes, unlabelled=unlabelled, unreadable=int(unreadable.sum())
    )


def share_bins() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the histogram's bins, (N_BINS + 2,) each: 0; (low, high] ...; 1.

    The last bin between leaves out 1 itself.
    """
    edges = np.arange(N_BINS + 1) / N_BINS
    return np.concatenate([[0.0], edges[:-1], [1.0]]), np.concatenate([[0.0], edges[1:], [1.0]])


def count_shares(label: NDArray[np.int8], tumour: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count patches by the tumour's share of their inner square.

    Returns
    -------
    counts : (3, N_BINS + 2)
        Of `GROUPS`, in the bins of `share_bins`.
    """
    share = np.asarray(tumour, np.float64)
    # float32 of k / N_BINS may lie above it: it belongs to the bin that it is the end of
    between = np.ceil(share * N_BINS - 1e-6).astype(np.int64).clip(1, N_BINS)
    row = np.where(share <= 0, 0, np.where(share >= 1, N_BINS + 1, between))
    masks = split_labels(label, tumour)
    return np.stack([np.bincount(row[masks[name]], minlength=N_BINS + 2) for name in GROUPS])


@dataclass(frozen=True)
class Ambiguous:
    """A patch whose label was decided narrowly."""

    group: Group
    row: int
    share: float  # of the inner square that is tumour
    neighbours: float  # mean share of the eight squares around it
    doubt: tuple[float, float]  # larger is less certain; compared within a group only


def find_ambiguous(
    *,
    coords: NDArray[np.int64],
    side_l0: tuple[int, int],
    label: NDArray[np.int8],
    tumour: NDArray[np.float32],
    unreadable: NDArray[np.bool_],
    bounds: tuple[float, float],
    most: int,
) -> list[Ambiguous]:
    """Find the patches of one slide whose labels are least certain.

    Parameters
    ----------
    coords : (N, 2), level-0 px
    side_l0 : (width, height), level-0 px
        Step of the grid, or the patch's side where that is larger.
    label, tumour, unreadable : (N,)
    bounds : (negative, positive)
        Between them a patch is ignored.
    most : int
        At most so many of each group.

    Returns
    -------
    found : list, by group
        Positives with the least tumour first; negatives with the most, and where it is equal (by
        the inner rule all have none) those most surrounded by it; ignored ones by nearness to a
        bound. Left out are those that are certain: positives with nothing but tumour in the inner
        square, negatives with none in or around it.
    """
    found: list[Ambiguous] = []
    around = _shares_around(coords, side_l0, tumour)
    for group, mask in split_labels(label, tumour).items():
        rows = np.flatnonzero(mask & ~unreadable)
        share = np.asarray(tumour, np.float64)[rows]
        if group == "positive":
            rows, share = rows[share < 1], share[share < 1]
            first, second = -share, -around[rows]
        elif group == "negative":
            first, second = share, around[rows]
            doubted = (first > 0) | (second > 0)
            rows, first, second = rows[doubted], first[doubted], second[doubted]
        else:
            gap = np.minimum(np.abs(share - bounds[0]), np.abs(share - bounds[1]))
            first, second = -gap, around[rows]
        for at in np.lexsort((rows, -second, -first))[:most].tolist():
            row = int(rows[at])
            doubt = (float(first[at]), float(second[at]))
            found.append(Ambiguous(group, row, float(tumour[row]), float(around[row]), doubt))
    return found


def _shares_around(
    coords: NDArray[np.int64],
    side_l0: tuple[int, int],
    tumour: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Mean share of the squares around each patch, (N,); one that is not there counts as 0."""
    from scipy.spatial import cKDTree  # a third of a second that counting does not need

    touched = np.flatnonzero(tumour > 0)
    if not touched.size:
        return np.zeros(len(coords))
    scaled = np.asarray(coords, np.float64) / np.asarray(side_l0, np.float64)
    tree = cKDTree(scaled[touched])
    # One more than asked for, as a touched patch finds itself.
    _, index = tree.query(scaled, k=NEIGHBOURS + 1, p=np.inf, distance_upper_bound=1 + 1e-9)
    share = np.append(np.asarray(tumour, np.float64)[touched], 0.0)[index]  # none there: the 0
    own = np.append(touched, -1)[index] == np.arange(len(coords))[:, None]
    around: NDArray[np.float64] = np.where(own, 0.0, share).sum(axis=1) / NEIGHBOURS
    return around.clip(0, 1)
