"""Explanation methods of one model, measured on the same images: one row for each method.

Each map is compared with the mask of its image as a heatmap is (`localise`): a map that is no
probability is stretched to [0, 1] over its image before the threshold of 0.5, also one with signs,
whose zero may then lie on either side; the ROC AUC is of the map as it is. A constant map becomes
0.5, which marks every pixel; such maps are counted. Areas under the deletion
and insertion curves need no mask and are averaged over the same images.

References
----------
.. [1] PatchNet paper 2, appendix E, tables 2 and 7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.localisation import (
    ImageLocalisation,
    Localisation,
    average_localisation,
    localise,
)
from wsi_pipeline.explain.patchnet import rescale_filters

METHOD_COLUMNS = (
    "method", "target", "n", "constant_n", "exact_match", "recall", "recall_n", "roc_auc",
    "roc_auc_n", "deletion_auc", "insertion_auc", "curves_n",
)  # fmt: skip
IMAGE_COLUMNS = (
    "method", "name", "n_pixels", "n_tumour", "exact_match", "recall", "roc_auc", "deletion_auc",
    "insertion_auc",
)  # fmt: skip
# Maps that know nothing of the image: what a method must surpass.
NO_PIXEL, EVERY_PIXEL = "(no pixel)", "(every pixel)"


@dataclass(frozen=True)
class MeasuredMap:
    """One map of one method."""

    name: str  # of the image
    on_mask: ImageLocalisation
    is_constant: bool = False  # one value everywhere: it ranks nothing
    deletion_auc: float | None = None  # None: not traced
    insertion_auc: float | None = None


@dataclass(frozen=True)
class MeasuredMethod:
    """All maps of a method."""

    method: str
    maps: tuple[MeasuredMap, ...]
    target: int | None = None  # class that was asked for; None: the method's own

    def row(self) -> tuple[Any, ...]:
        """Return its `METHOD_COLUMNS`: means over images, and of how many."""
        mean = average_localisation(one.on_mask for one in self.maps)
        deletion, n_curves = _mean([one.deletion_auc for one in self.maps])
        insertion, _ = _mean([one.insertion_auc for one in self.maps])
        return (
            self.method,
            self.target,
            mean.n,
            sum(one.is_constant for one in self.maps),
            mean.exact_match,
            mean.recall,
            mean.n - mean.recall_skipped,
            mean.roc_auc,
            mean.n - mean.roc_auc_skipped,
            deletion,
            insertion,
            n_curves,
        )


def _mean(values: Sequence[float | None]) -> tuple[float | None, int]:
    known = [v for v in values if v is not None]
    return (float(np.mean(known)) if known else None), len(known)


def measure_constants(masks: Mapping[str, NDArray[np.bool_]]) -> list[MeasuredMethod]:
    """Measure the maps that mark no pixel, and every pixel."""
    return [
        MeasuredMethod(
            name,
            tuple(
                MeasuredMap(image, localise(np.full(mask.shape, value), mask), is_constant=True)
                for image, mask in masks.items()
            ),
        )
        for name, value in ((NO_PIXEL, 0.0), (EVERY_PIXEL, 1.0))
    ]


def write_methods(folder: Path, methods: Sequence[MeasuredMethod]) -> Path:
    """Write ``methods.csv``, a row for each method, and ``methods_images.csv``, for each map.

    Raises
    ------
    EvaluationError
        If methods are of different images: their means could not be compared.
    """
    names = {tuple(one.name for one in method.maps) for method in methods}
    if len(names) > 1:
        raise EvaluationError("methods are compared on the same images, and these are of others")
    write_csv(
        folder / "methods_images.csv",
        IMAGE_COLUMNS,
        [
            (
                method.method,
                one.name,
                one.on_mask.n_pixels,
                one.on_mask.n_tumour,
                one.on_mask.exact_match,
                one.on_mask.recall,
                one.on_mask.roc_auc,
                one.deletion_auc,
                one.insertion_auc,
            )
            for method in methods
            for one in method.maps
        ],
    )
    table = folder / "methods.csv"
    write_csv(table, METHOD_COLUMNS, [method.row() for method in methods])
    return table


# ------------------------------------------------------------ PatchNet's filters

FILTER_COLUMNS = (
    "filter", "sign", "chosen",
    "val_n", "val_exact_match", "val_recall", "val_recall_n", "val_roc_auc", "val_roc_auc_n",
    "test_n", "test_exact_match", "test_recall", "test_recall_n", "test_roc_auc", "test_roc_auc_n",
)  # fmt: skip
SIGNS = (1, -1)

FilterMaps = dict[tuple[int, int], ImageLocalisation]  # by (filter, sign), of one image


def localise_filters(raw: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> FilterMaps:
    """Compare each filter's map of an image, and its negative, with the mask.

    Parameters
    ----------
    raw : (filters, H, W) in [-1, 1]
        The tanh of each filter. Each is stretched over the image, as the papers show them; a
        constant one becomes 0.5. The negative is 1 minus that.
    mask : (H, W) bool
    """
    maps = rescale_filters(raw).astype(np.float64)
    return {
        (number, sign): localise(values if sign > 0 else 1 - values, mask)
        for number, values in enumerate(maps)
        for sign in SIGNS
    }


@dataclass(frozen=True)
class JudgedFilters:
    """The filters of one model, on the images of two splits."""

    val: dict[tuple[int, int], Localisation]
    test: dict[tuple[int, int], Localisation]

    @property
    def chosen(self) -> tuple[int, int] | None:
        """The filter and sign of the highest mean ROC AUC on val; None: it is defined for none."""
        known = {key: of.roc_auc for key, of in self.val.items() if of.roc_auc is not None}
        return max(known, key=lambda key: known[key]) if known else None

    def write(self, path: Path) -> None:
        """Write a row for each filter and sign."""
        write_csv(
            path,
            FILTER_COLUMNS,
            [
                (key[0], key[1], int(key == self.chosen), *_cells(self.val[key]), *_cells(of_test))
                for key, of_test in self.test.items()
            ],
        )


def judge_filters(val: Sequence[FilterMaps], test: Sequence[FilterMaps]) -> JudgedFilters:
    """Average over the images of both splits: the best filter is chosen on val alone.

    Raises
    ------
    EvaluationError
        If a split has no image.
    """
    if not val or not test:
        raise EvaluationError("filters are chosen on images of one split and judged on another's")

    def average(images: Sequence[FilterMaps]) -> dict[tuple[int, int], Localisation]:
        return {key: average_localisation(image[key] for image in images) for key in images[0]}

    return JudgedFilters(average(val), average(test))


def _cells(of: Localisation) -> tuple[Any, ...]:
    recall_n, auc_n = of.n - of.recall_skipped, of.n - of.roc_auc_skipped
    return of.n, of.exact_match, of.recall, recall_n, of.roc_auc, auc_n
