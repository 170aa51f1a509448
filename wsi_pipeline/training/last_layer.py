"""The last layer of a prototype network, fitted as a convex problem to similarities that are fixed.

The weights minimise the mean softmax cross-entropy plus `l1` times the absolute weights between
prototypes and classes other than their own, with everything else of the network frozen [1]_.

With two classes, moving the weight of a prototype to the other class over to its own, with the
opposite sign, changes no probability and lowers the penalty. Every minimiser therefore has weights
of 0 to the other class, whatever `l1` > 0, and what is left is smooth: a logistic regression
without intercept on the similarities. It is solved by FISTA [2]_, whose proximal step keeps those
zeros, with restarts [3]_. Similarities are nearly collinear, so steps are taken in coordinates in
which they are not: a hundred times fewer are needed.

References
----------
.. [1] Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition",
   NeurIPS 2019, section 2.2, stage 3. Their code takes 20 epochs of Adam in training mode.
.. [2] Beck, Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse
   Problems", SIAM Journal on Imaging Sciences 2(1), 2009.
.. [3] O'Donoghue, Candès, "Adaptive Restart for Accelerated Gradient Schemes", Foundations of
   Computational Mathematics 15, 2015: the gradient scheme.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tiling.wording import pluralize
from wsi_pipeline.errors import TrainingError

L1 = 1e-4  # factor of the penalty [1]
TOLERANCE = 1e-4  # of the optimality conditions
GAP = 1e-7  # nats: largest estimated distance of the objective from its minimum
MAX_STEPS = 20_000

_CHECK_EVERY = 10  # steps
_CURVATURE = 1 / 4  # largest second derivative of the cross-entropy by the logit
_RANK = 1e-12  # of the largest eigenvalue: directions with less do not matter to the logits


@dataclass(frozen=True)
class LastLayerFit:
    """Fitted weights, and how close they are to a minimum.

    Attributes
    ----------
    weights : (2, P)
        Rows are classes.
    objective : float
        Mean cross-entropy plus penalty, nats.
    kkt : float
        Largest violation of the optimality conditions (`measure_kkt`).
    steps : int
    converged : bool
    reason : str
        Why it did not converge; empty if it did.
    """

    weights: NDArray[np.float64]
    objective: float
    kkt: float
    steps: int
    converged: bool
    reason: str = ""


def fit_last_layer(
    similarities: NDArray[np.float64],
    labels: NDArray[np.integer],
    prototype_class: NDArray[np.integer],
    start: NDArray[np.float64],
    *,
    l1: float = L1,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> LastLayerFit:
    """Fit the weights of the last layer.

    Parameters
    ----------
    similarities : (N, P)
        Of each training image to each prototype.
    labels : (N,) 0 or 1
    prototype_class : (P,) 0 or 1
    start : (2, P)
        Weights to start from; a minimum does not depend on them.
    l1 : float
        Factor of the absolute weights between prototypes and the other class.
    tolerance : float
        Largest violation of the optimality conditions that counts as a minimum.
    max_steps : int

    Returns
    -------
    fit : LastLayerFit
        Not converged if the limit of steps was reached. It always is where the weights separate
        the classes: larger ones then lower the cross-entropy further, without end, since weights
        to a prototype's own class are not penalised.

    Raises
    ------
    TrainingError
        If shapes do not match, values are not finite, or labels are neither 0 nor 1.
    """
    problem = _Problem.of(similarities, labels, prototype_class, l1)
    first = np.array(start, np.float64)
    _check_start(first, problem, tolerance, max_steps)
    weights = problem.place(first[1] - first[0])
    steps, is_minimum = 0, problem.is_minimum(weights, tolerance)
    if not is_minimum:
        for steps, difference in enumerate(problem.descend(first[1] - first[0]), start=1):
            if steps % _CHECK_EVERY == 0 or steps == max_steps:
                weights = problem.place(difference)
                is_minimum = problem.is_minimum(weights, tolerance)
                if is_minimum or steps == max_steps:
                    break
    kkt = problem.kkt(weights)
    reason = "" if is_minimum else problem.explain_limit(weights, steps, kkt, tolerance)
    return LastLayerFit(weights, problem.objective(weights), kkt, steps, is_minimum, reason)


def measure_kkt(
    gradient: NDArray[np.float64],
    weights: NDArray[np.float64],
    penalised: NDArray[np.bool_],
    l1: float,
) -> float:
    """Measure the violation of the optimality conditions of the fit.

    They are: a gradient of the cross-entropy of 0 at weights without penalty, of -l1 sign(w) at
    those with penalty, and of at most l1 in size where such a weight is 0.

    Parameters
    ----------
    gradient, weights, penalised : (2, P)
    l1 : float

    Returns
    -------
    violation : float
        The largest of all weights.

    Examples
    --------
    >>> gradient, weights = np.array([[0.0, 0.3], [-0.1, 0.1]]), np.array([[2.0, 0.0], [0.5, 0.0]])
    >>> penalised = np.array([[False, True], [True, False]])
    >>> round(measure_kkt(gradient, weights, penalised, l1=0.1), 12)
    0.2
    """
    at_zero = np.maximum(np.abs(gradient) - l1, 0)
    elsewhere = np.abs(gradient + l1 * np.sign(weights))
    violation = np.where(weights == 0, at_zero, elsewhere)
    return float(np.where(penalised, violation, np.abs(gradient)).max())


@dataclass(frozen=True)
class _Problem:
    """The objective and its parts. With two classes, all depends on the logit alone."""

    similarities: NDArray[np.float64]  # (N, P)
    signs: NDArray[np.float64]  # (N,): 1 of class 1, -1 of class 0
    penalised: NDArray[np.bool_]  # (2, P)
    l1: float

    @classmethod
    def of(
        cls,
        similarities: NDArray[np.float64],
        labels: NDArray[np.integer],
        prototype_class: NDArray[np.integer],
        l1: float,
    ) -> "_Problem":
        s, y = np.asarray(similarities, np.float64), np.asarray(labels)
        classes = np.asarray(prototype_class)
        if s.ndim != 2 or 0 in s.shape or y.shape != s.shape[:1] or classes.shape != s.shape[1:]:
            raise TrainingError(
                "the last layer is fitted to similarities (N, P), labels (N,) and the classes of "
                f"prototypes (P,), got shapes {s.shape}, {y.shape} and {classes.shape}"
            )
        if not np.isfinite(s).all():
            raise TrainingError(
                f"{np.sum(~np.isfinite(s))} of {s.size} similarities to prototypes are not finite; "
                "the network may have diverged: train with a lower learning rate"
            )
        for name, values in (("labels", y), ("classes of prototypes", classes)):
            if not np.isin(values, (0, 1)).all():
                raise TrainingError(f"{name} must be 0 or 1, got {np.unique(values).tolist()}")
        if not l1 >= 0:
            raise TrainingError(f"the penalty of the last layer must be at least 0, got l1={l1}")
        return cls(s, np.where(y == 1, 1.0, -1.0), np.arange(2)[:, None] != classes, float(l1))

    def place(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weights with these differences, class 1 minus 0, that have no penalty."""
        return np.where(self.penalised, 0.0, np.stack([-difference, difference]))

    def descend(self, difference: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
        """Run FISTA from differences of weights, (P,); yield those after each step, without end."""
        s = self.similarities
        values, vectors = np.linalg.eigh(s.T @ s / len(s))
        matters = values > _RANK * values[-1]
        roots, vectors = np.sqrt(values[matters]), vectors[:, matters]
        white = s @ (vectors / roots)  # (N, r), of second moment 1
        now = roots * (difference @ vectors)
        point, momentum = now, 1.0
        while True:
            residuals = -self.signs * expit(-self.signs * (white @ point))
            moved = point - residuals @ white / len(s) / _CURVATURE
            if (point - moved) @ (moved - now) > 0:  # momentum points uphill: restart
                momentum = 1.0
            larger = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            point = moved + (momentum - 1) / larger * (moved - now)
            now, momentum = moved, larger
            yield vectors @ (now / roots)

    def margins(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each image the logit of its own class against the other, (N,)."""
        return np.asarray(self.signs * (self.similarities @ (weights[1] - weights[0])))

    def objective(self, weights: NDArray[np.float64]) -> float:
        """Return the mean cross-entropy plus the penalty."""
        cross_entropy = np.logaddexp(0, -self.margins(weights)).mean()
        return float(cross_entropy + self._penalty(weights))

    def _penalty(self, weights: NDArray[np.float64]) -> float:
        return float(self.l1 * np.abs(weights[self.penalised]).sum())

    def gradient(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient of the cross-entropy, (2, P)."""
        residuals = -self.signs * expit(-self.margins(weights))
        of_class_1 = residuals @ self.similarities / len(residuals)
        return np.stack([-of_class_1, of_class_1])

    def kkt(self, weights: NDArray[np.float64]) -> float:
        """Measure the violation of the optimality conditions."""
        return measure_kkt(self.gradient(weights), weights, self.penalised, self.l1)

    def is_minimum(self, weights: NDArray[np.float64], tolerance: float) -> bool:
        """Return whether the conditions hold, at a minimum: not on the way to infinity."""
        return (
            self.kkt(weights) <= tolerance
            and not self.separates(weights)
            and self._estimate_gap(weights) <= GAP
        )

    def separates(self, weights: NDArray[np.float64]) -> bool:
        """Return whether every image is on its side: proof that there is no finite minimiser."""
        return bool((self.margins(weights) > 0).all())

    def _estimate_gap(self, weights: NDArray[np.float64]) -> float:
        """Estimate how far the objective is above its minimum.

        That is the penalty, which is 0 at a minimum, plus half the squared Newton decrement of the
        logistic regression. Small gradients alone do not bound it: similarities are nearly
        collinear.
        """
        wrong = expit(-self.margins(weights))
        s, curvature = self.similarities, wrong * (1 - wrong)
        hessian = (s * curvature[:, None]).T @ s / len(s)
        gradient = self.gradient(weights)[1]
        direction = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        return self._penalty(weights) + float(gradient @ direction) / 2

    def explain_limit(
        self, weights: NDArray[np.float64], steps: int, kkt: float, tolerance: float
    ) -> str:
        """Explain why the limit of steps was reached."""
        stopped = f"the last layer stopped at its limit of {pluralize(steps, 'step')}"
        if self.separates(weights):
            return (
                f"{stopped}: its weights separate the classes of all "
                f"{pluralize(len(self.signs), 'training image')}, and since weights to a "
                "prototype's own class are not penalised, larger ones always lower the "
                "cross-entropy; there is no finite minimiser"
            )
        return (
            f"{stopped}, where the optimality conditions are violated by {kkt:.2g} (tolerance "
            f"{tolerance:.2g}) and the objective is about {self._estimate_gap(weights):.2g} above "
            f"its minimum (tolerance {GAP:.2g}); allow more steps"
        )


def _check_start(
    weights: NDArray[np.float64], problem: _Problem, tolerance: float, max_steps: int
) -> None:
    if weights.shape != problem.penalised.shape or not np.isfinite(weights).all():
        raise TrainingError(
            f"the last layer starts from finite weights {problem.penalised.shape}, got "
            f"{weights.shape}, of which {np.isfinite(weights).sum()} are finite"
        )
    if tolerance <= 0 or max_steps < 1:
        raise TrainingError(
            "the fit of the last layer needs a tolerance above 0 and at least 1 step, got "
            f"tolerance={tolerance}, max_steps={max_steps}"
        )
