"""The pathologic N stage of a patient, from the classes of its lymph nodes, and Cohen's kappa.

CAMELYON17 stages patients of five nodes by a simplified form of the pN categories of breast cancer
[1]_. A node with a macro- or micrometastasis counts as metastatic, one with isolated tumour cells
(ITC) does not:

- ``pN0``: no metastasis and no ITC;
- ``pN0(i+)``: ITC only;
- ``pN1mi``: micrometastases, but no macrometastasis;
- ``pN1``: metastases in 1 to 3 nodes, at least one of them a macrometastasis;
- ``pN2``: metastases in 4 to 9 nodes, at least one of them a macrometastasis.

Stages, and the four classes of nodes, are compared with a reference by Cohen's kappa with quadratic
weights [2]_, as the challenge does.

References
----------
.. [1] CAMELYON17, "Evaluation", https://camelyon17.grand-challenge.org/Evaluation/; P. Bándi et
   al., "From Detection of Individual Metastases to Classification of Lymph Node Status at the
   Patient Level: The CAMELYON17 Challenge", IEEE TMI 2019;38:550-560, doi 10.1109/TMI.2018.2867350.
.. [2] J. Cohen, "Weighted kappa: nominal scale agreement with provision for scaled disagreement or
   partial credit", Psychological Bulletin 1968;70:213-220.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import EvaluationError

# In the order of their severity, which the weights of kappa depend on.
NODE_CLASSES = ("negative", "itc", "micro", "macro")
STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
NODES_PER_PATIENT = 5  # CAMELYON17's
MOST_OF_PN1 = 3  # metastatic nodes
MOST_OF_PN2 = 9


def stage_patient(nodes: Sequence[str]) -> str:
    """Derive the stage of a patient from its nodes.

    Parameters
    ----------
    nodes : sequence of {"negative", "itc", "micro", "macro"}
        At least one.

    Raises
    ------
    EvaluationError
        If there is no node, a class is unknown, or a macrometastasis is among more than nine
        metastatic nodes, for which CAMELYON17 has no stage.

    Examples
    --------
    >>> stage_patient(["negative", "itc", "macro", "macro", "micro"])
    'pN1'
    >>> stage_patient(["micro", "micro", "micro", "micro", "itc"])
    'pN1mi'
    """
    unknown = [node for node in nodes if node not in NODE_CLASSES]
    if unknown or not nodes:
        raise EvaluationError(
            f"nodes must be {', '.join(NODE_CLASSES)}, got {unknown[0] if unknown else 'no node'}"
        )
    n_metastatic = nodes.count("macro") + nodes.count("micro")
    if not n_metastatic:
        return "pN0(i+)" if "itc" in nodes else "pN0"
    if "macro" not in nodes:
        return "pN1mi"
    if n_metastatic > MOST_OF_PN2:
        raise EvaluationError(
            f"{n_metastatic} metastatic nodes, but the stages of CAMELYON17 end with pN2, at most "
            f"{MOST_OF_PN2} nodes"
        )
    return "pN1" if n_metastatic <= MOST_OF_PN1 else "pN2"


def count_pairs(
    reference: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> NDArray[np.int64]:
    """Count the pairs of classes.

    Returns
    -------
    confusion : (K, K)
        Rows are the reference, columns the prediction, in the order of `classes`.
    """
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    place = {name: i for i, name in enumerate(classes)}
    for true, found in zip(reference, predicted, strict=True):
        confusion[place[true], place[found]] += 1
    return confusion


def quadratic_kappa(confusion: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Compute Cohen's kappa with quadratic weights.

    Parameters
    ----------
    confusion : (..., K, K)
        One confusion matrix, or several.

    Returns
    -------
    kappa : (...)
        1 is agreement, 0 what independent raters with the same frequencies reach on average; NaN
        where both use one and the same class only, or there is nothing to compare.

    Examples
    --------
    >>> float(quadratic_kappa(np.array([[2, 0], [1, 1]])))
    0.5
    """
    counts = np.asarray(confusion, dtype=np.float64)
    n_classes = counts.shape[-1]
    weights = np.subtract.outer(np.arange(n_classes), np.arange(n_classes)) ** 2.0
    total = counts.sum(axis=(-2, -1))
    # Disagreement by chance, times the square of the number of pairs.
    chance = np.einsum("...i,ij,...j", counts.sum(axis=-1), weights, counts.sum(axis=-2))
    found = (counts * weights).sum(axis=(-2, -1)) * total
    kappa = np.full(np.shape(total), np.nan)
    np.divide(found, chance, out=kappa, where=chance > 0)
    return np.asarray(1 - kappa)


def resampled_kappa(
    reference: Sequence[str],
    predicted: Sequence[str],
    classes: Sequence[str],
    weights: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Compute `quadratic_kappa` of each replicate of a bootstrap.

    Parameters
    ----------
    reference, predicted : (S,)
    weights : (B, S)
        How often each replicate holds each row.

    Returns
    -------
    kappa : (B,)
    """
    n_classes = len(classes)
    place = {name: i for i, name in enumerate(classes)}
    cells = [place[r] * n_classes + place[p] for r, p in zip(reference, predicted, strict=True)]
    of_cell = np.zeros((len(cells), n_classes**2), dtype=np.int64)
    of_cell[np.arange(len(cells)), cells] = 1
    return quadratic_kappa((weights @ of_cell).reshape(-1, n_classes, n_classes))
