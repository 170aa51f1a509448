"""Is a faster precision good enough? Compare it with fp32 on a slide's first patches."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiling.wording import pluralize
from wsi_pipeline.contracts import Rule

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_pipeline.inference.forward import Forward

# Patches compared per slide: on the CPU fp32 takes about three times as long as bf16, so this costs
# a slide of a thousand patches two percent.
N_COMPARED = 8


@dataclass(frozen=True)
class PrecisionCheck:
    """How far the scores of a faster way are from fp32's on the same patches."""

    n_patches: int
    largest_difference: float  # of scores
    n_flipped: int  # decisions at the threshold that differ
    threshold: float  # that scores are compared with
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether the largest difference is tolerated."""
        return self.largest_difference <= self.tolerance

    def as_plain(self) -> dict[str, Any]:
        """Return what the score file keeps."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"largest difference from fp32 on {pluralize(self.n_patches, 'patch')} "
            f"{self.largest_difference:.1e}, {pluralize(self.n_flipped, 'decision')} flipped"
        )


def compare_with_fp32(
    forward: "Forward", pixels: "Tensor", *, slide_id: str, rule: Rule, tolerance: float
) -> PrecisionCheck:
    """Score patches both ways.

    Parameters
    ----------
    forward : Forward
        In the precision asked for.
    pixels : (B, P, P, 3) uint8
        The slide's first readable patches.
    slide_id : str
    rule : Rule
        By which a decision is taken.
    tolerance : float
        Largest difference of scores that is not remarked on.
    """
    fast: NDArray[np.floating[Any]] = forward.score(pixels, slide_id)
    exact: NDArray[np.floating[Any]] = forward.score_exactly(pixels, slide_id)
    if forward.output == "logits":
        fast, exact = sigmoid(fast), sigmoid(exact)
    if fast.ndim == 2:  # the score comes first, then each class
        fast, exact = fast[:, 0], exact[:, 0]
    return PrecisionCheck(
        n_patches=len(pixels),
        largest_difference=float(np.abs(fast - exact).max(initial=0)),
        n_flipped=int((rule.decide(fast) != rule.decide(exact)).sum()),
        threshold=rule.threshold,
        tolerance=tolerance,
    )


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Turn logits into scores without overflow."""
    exact = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(exact))
    return np.asarray(np.where(exact >= 0, 1 / (1 + small), small / (1 + small)))
