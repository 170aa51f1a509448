"""Optimum of PatchNet's loss on two kinds of patches (paper 1, 3.3 and appendix A).

Class 0 has only patches P0; class 1 has `a` of them and `b` patches P1. With p0 and p1 the subnet's
probabilities of the two kinds, the loss of one image of each class is

    L(p0, p1) = -log(1 - p0) - log((a p0 + b p1) / (a + b)).

It falls with p1 everywhere; for a given p1 its root in p0 is (a - b p1) / (2a), or 0 where that is
negative. The paper prints the derivative of the case a = 3b with a leading minus and the
denominator p0 (3 p0 + p1); the right one is +(6 p0 + p1 - 3) / ((1 - p0)(3 p0 + p1)). Its root,
1/3, is the same.
"""

import math

from wsi_pipeline.errors import ModelError


def toy_optimum(a: float, b: float, *, p1: float = 1.0) -> float:
    """Return the p0 of least loss: (a - b p1) / (2a), not below 0.

    Parameters
    ----------
    a, b : float
        Patches of kind P0 and P1 in a class-1 image; a above 0, b at least 0.
    p1 : float in [0, 1]
        Probability of P1; 1 at the optimum of both.

    Examples
    --------
    >>> round(toy_optimum(3, 1), 4)
    0.3333
    >>> toy_optimum(1, 2)
    0.0
    """
    if not (a > 0 and b >= 0 and 0 <= p1 <= 1):
        raise ModelError(f"a must be above 0, b at least 0, p1 in [0, 1]; got {a=}, {b=}, {p1=}")
    return max(0.0, (a - b * p1) / (2 * a))


def toy_loss(p0: float, p1: float, *, a: float, b: float) -> float:
    """Return L(p0, p1), the cross-entropy of one image of each class."""
    return -math.log1p(-p0) - math.log((a * p0 + b * p1) / (a + b))


def toy_gradient(p0: float, p1: float, *, a: float, b: float) -> tuple[float, float]:
    """Return dL/dp0 and dL/dp1."""
    mixed = a * p0 + b * p1
    return 1 / (1 - p0) - a / mixed, -b / mixed
