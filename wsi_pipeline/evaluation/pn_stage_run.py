"""Classes of lymph nodes from the heatmaps of a run: the extent of the largest hot region.

A region is a set of heatmap pixels with a value of at least a threshold, connected along edges or
corners. Its extent is the longest distance between two points of it, with its pixels as squares, as
for annotated metastases (`wsi_pipeline.evaluation.metastases`): macro above 2 mm, micro above
0.2 mm, itc up to 0.2 mm; negative where no pixel reaches the threshold.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from tiling.errors import StoreError
from tiling.store import PatchStore
from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.contracts import Rule, SlideEntry
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.metastases import classify_metastasis, longest_diameter
from wsi_pipeline.evaluation.pn_stage_tables import NODE_NAME, PatientRows, StageTable
from wsi_pipeline.evaluation.slide_names import fold_name
from wsi_pipeline.heatmaps.files import read_heatmap
from wsi_pipeline.layout import RunFolder

_CORNERS_TOUCH = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class MeasuredNode:
    """A slide of a run, as a lymph node."""

    slide_id: str
    patient: str
    number: str  # of the node within its patient
    kind: str  # negative, itc, micro, macro
    n_regions: int | None  # None: there is no heatmap
    diameter_um: float | None  # of the largest region; None: there is none
    pixel_um: float | None  # longer side of a heatmap pixel


def measure_nodes(
    folder: Path, model: str, *, threshold: float, count_missing: bool
) -> list[MeasuredNode]:
    """Measure the slides of a run that are in split test, or in none.

    Parameters
    ----------
    folder : Path
        The run folder.
    model : str
        Whose heatmaps are measured.
    threshold : in [0, 1]
        A pixel is part of a region iff its value >= threshold.
    count_missing : bool
        Whether slides without a heatmap are negative, instead of an error.

    Raises
    ------
    EvaluationError
        If there is no such slide, or slides have no heatmap, naming them.
    HeatmapError, StoreError
        If a file is damaged.
    """
    run = RunFolder(folder)
    entries = [e for e in read_run_manifest(run) if e.split in ("test", None)]
    if not entries:
        raise EvaluationError(f"{folder}: no slide in split test, or without a split")
    missing = [e.slide_id for e in entries if not run.heatmap(model, e.slide_id).is_file()]
    if len(missing) == len(entries):
        known = ", ".join(run.models_with("heatmaps")) or "none"
        raise EvaluationError(
            f"{folder}: no heatmaps of a model '{model}'; models with heatmaps: {known}. Run: "
            f"wsi-pipeline heatmap {folder}"
        )
    if missing and not count_missing:
        raise EvaluationError(
            f"{folder}: {pluralize(len(missing), 'slide')} without a heatmap by {model}: "
            f"{name_some(missing)}; run predict and heatmap again, or count them as negative with "
            "--missing negative"
        )
    unnamed = {entry.slide_id for entry in entries}  # patients that the manifest does not name
    return [
        _measure(run, model, e, threshold, has_patient=e.patient not in unnamed) for e in entries
    ]


def _measure(
    run: RunFolder, model: str, entry: SlideEntry, threshold: float, *, has_patient: bool
) -> MeasuredNode:
    patient, number = _name_node(entry, has_patient=has_patient)
    path = run.heatmap(model, entry.slide_id)
    if not path.is_file():
        return MeasuredNode(entry.slide_id, patient, number, "negative", None, None, None)
    heatmap, mpp = read_heatmap(path), _read_mpp(run, entry)
    pixel_um = (heatmap.pixel_l0[0] * mpp[0], heatmap.pixel_l0[1] * mpp[1])
    diameters = measure_regions(heatmap.values, threshold=threshold, pixel_um=pixel_um)
    largest = max(diameters, default=None)
    kind = "negative" if largest is None else classify_metastasis(largest)
    return MeasuredNode(
        entry.slide_id, patient, number, kind, len(diameters), largest, max(pixel_um)
    )


def _name_node(entry: SlideEntry, *, has_patient: bool) -> tuple[str, str]:
    """Return patient and node: of a slide named as in CAMELYON17 those of its name."""
    named = NODE_NAME.fullmatch(entry.slide_id)
    if named and (not has_patient or fold_name(entry.patient) == fold_name(named["patient"])):
        return named["patient"], named["node"]
    return entry.patient, re.sub(r"\W", "_", entry.slide_id)


def _read_mpp(run: RunFolder, entry: SlideEntry) -> tuple[float, float]:
    path = run.store(entry.slide_id)
    if not path.is_dir():
        raise StoreError(f"{path.name}: no such patch store; run: wsi-pipeline tile")
    with PatchStore.open(path) as store:
        return store.info.mpp


def measure_regions(
    values: NDArray[np.float32], *, threshold: float, pixel_um: tuple[float, float]
) -> list[float]:
    """Measure the extent of each region of a heatmap.

    Parameters
    ----------
    values : (H, W)
        NaN = not scored, in no region.
    threshold : float
    pixel_um : (x, y), µm

    Returns
    -------
    diameters : list of float, µm
        In the order of the regions' first pixels.

    Examples
    --------
    >>> hot = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    >>> [round(d) for d in measure_regions(hot, threshold=0.5, pixel_um=(100, 100))]
    [283]
    """
    labels, _ = ndimage.label(Rule(threshold).decide(values), structure=_CORNERS_TOUCH)
    diameters = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        row, column = np.nonzero(labels[place] == number)
        corners = [(column + dx, row + dy) for dx in (0, 1) for dy in (0, 1)]
        points = shapely.multipoints(np.concatenate([np.stack(c, axis=1) for c in corners]))
        diameters.append(longest_diameter(points, mpp=pixel_um))
    return diameters


def tabulate_nodes(path: Path, nodes: Sequence[MeasuredNode]) -> StageTable:
    """Arrange measured nodes as if they had been read from a table.

    Raises
    ------
    EvaluationError
        If two slides are one node.
    """
    table = StageTable(path, {})
    for node in nodes:
        patient = table.patients.setdefault(fold_name(node.patient), PatientRows(node.patient))
        key = fold_name(node.number)
        name = f"{node.patient}_node_{node.number}"
        if key in patient.nodes:
            raise EvaluationError(f"{path}: two slides are the node {name}; rename one of them")
        patient.nodes[key] = node.kind
        patient.node_names[key] = name
    return table
