"""The error gallery: which patches to look at first, worst first.

A false positive is a negative patch scored at least the threshold; the worst is the surest. A
missed lesion is one of which no patch reaches the threshold; it is shown by its best patch, and the
worst is the one whose best patch is least suspicious (a lesion on which no scored patch lies comes
first, without a picture).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import Rule

CaseKind = Literal["false_positive", "missed_lesion"]
N_CASES = 12  # of each kind
ERROR_COLUMNS = ("kind", "rank", "slide_id", "x", "y", "score", "lesion", "picture")


@dataclass(frozen=True)
class ErrorCase:
    """One error, and the patch that shows it."""

    kind: CaseKind
    rank: int  # from 1, the worst
    slide_id: str
    patch: int | None  # row in the patch store; None: no scored patch lies on the lesion
    x: int | None  # top-left corner, level-0 px
    y: int | None
    score: float | None
    lesion: str = ""

    @property
    def file_name(self) -> str:
        """Name of its crop: whatever a slide is called, a plain file name.

        Examples
        --------
        >>> ErrorCase("false_positive", 3, "a/b c", 0, 0, 0, 0.9).file_name
        'false_positive-03-a_b_c.png'
        """
        slide = re.sub(r"[^A-Za-z0-9._-]+", "_", self.slide_id)[:80]
        return f"{self.kind}-{self.rank:02d}-{slide}.png"


@dataclass(frozen=True)
class SlideCases:
    """What the choice needs of one slide."""

    slide_id: str
    coords: NDArray[np.int64]  # (N, 2) x, y, level-0 px
    scores: NDArray[np.floating[Any]]  # (N,) NaN = unreadable
    labels: NDArray[np.integer[Any]]  # (N,) 1, 0, -1
    lesion_pairs: NDArray[np.int64]  # (M, 2) patch, index into lesion_ids
    lesion_ids: Sequence[str]


def count_errors(slides: Sequence[SlideCases], *, threshold: float) -> tuple[int, int]:
    """Count false positives and missed lesions of all slides."""
    n_false = sum(int(np.count_nonzero(_false_positive(s, threshold))) for s in slides)
    best = [_best_patches(s)[1] for s in slides]
    return n_false, sum(int(np.count_nonzero(~Rule(threshold).decide(b))) for b in best)


def choose_errors(
    slides: Sequence[SlideCases], *, threshold: float, n: int = N_CASES
) -> list[ErrorCase]:
    """Choose the worst errors of all slides.

    Parameters
    ----------
    threshold : float
        A patch is predicted positive iff its score >= threshold.
    n : int
        At most so many of each kind. Ties go to the slide and the patch that come first.
    """
    return _false_positives(slides, threshold, n) + _missed_lesions(slides, threshold, n)


def _false_positive(slide: SlideCases, threshold: float) -> NDArray[np.bool_]:
    wrong: NDArray[np.bool_] = (slide.labels == 0) & Rule(threshold).decide(slide.scores)
    return wrong


def _false_positives(slides: Sequence[SlideCases], threshold: float, n: int) -> list[ErrorCase]:
    found: list[tuple[float, int, int]] = []
    for number, slide in enumerate(slides):
        wrong = np.flatnonzero(_false_positive(slide, threshold))
        worst = wrong[np.argsort(-slide.scores[wrong], kind="stable")[:n]]
        found += [(-float(slide.scores[i]), number, i) for i in worst.tolist()]
    return [
        _case("false_positive", rank, slides[number], patch)
        for rank, (_, number, patch) in enumerate(sorted(found)[:n], start=1)
    ]


def _missed_lesions(slides: Sequence[SlideCases], threshold: float, n: int) -> list[ErrorCase]:
    found: list[tuple[float, int, int, int]] = []
    for number, slide in enumerate(slides):
        patch, best = _best_patches(slide)
        found += [
            (-1.0 if np.isnan(best[i]) else float(best[i]), number, i, int(patch[i]))
            for i in np.flatnonzero(~Rule(threshold).decide(best)).tolist()
        ]
    return [
        _case("missed_lesion", rank, slides[number], patch, slides[number].lesion_ids[lesion])
        for rank, (_, number, lesion, patch) in enumerate(sorted(found)[:n], start=1)
    ]


def _best_patches(slide: SlideCases) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the highest-scoring patch of each lesion: its row (-1: none) and its score (NaN)."""
    patch = np.full(len(slide.lesion_ids), -1, dtype=np.int64)
    best = np.full(len(slide.lesion_ids), np.nan)
    for row, lesion in slide.lesion_pairs.tolist():
        score = float(slide.scores[row])
        if not np.isnan(score) and not best[lesion] >= score:
            patch[lesion], best[lesion] = row, score
    return patch, best


def _case(kind: CaseKind, rank: int, slide: SlideCases, patch: int, lesion: str = "") -> ErrorCase:
    if patch < 0:
        return ErrorCase(kind, rank, slide.slide_id, None, None, None, None, lesion)
    x, y = slide.coords[patch].tolist()
    return ErrorCase(kind, rank, slide.slide_id, patch, x, y, float(slide.scores[patch]), lesion)
