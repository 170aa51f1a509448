"""What the command ``stage`` computes: plain files or a run in, stages and kappa out."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tiling.files import digest_file, write_json
from tiling.wording import name_some, pluralize
from wsi_pipeline import __version__
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import Resamples, draw_resamples
from wsi_pipeline.evaluation.intervals import Interval, percentile_interval, share_interval
from wsi_pipeline.evaluation.pn_stage import (
    NODE_CLASSES,
    NODES_PER_PATIENT,
    STAGES,
    count_pairs,
    quadratic_kappa,
    resampled_kappa,
)
from wsi_pipeline.evaluation.pn_stage_tables import (
    PatientRows,
    StageTable,
    check_numbers,
    find_contradictions,
    read_stage_table,
)
from wsi_pipeline.layout import RunFolder

if TYPE_CHECKING:
    from wsi_pipeline.evaluation.pn_stage_run import MeasuredNode

log = logging.getLogger(__name__)

Missing = Literal["error", "negative"]
REPLICATES = 1000
THRESHOLD = EvaluateConfig.threshold
_COLUMNS = ("patient", "stage", "reference")
_NODE_COLUMNS = ("slide_id", "patient", "kind", "n_regions", "diameter_um", "pixel_um")
_PATHS = ("out", "predictions", "reference", "run")


@dataclass(frozen=True)
class StageOptions:
    """The options of the command."""

    out: Path
    predictions: Path | None = None  # CSV; or run and model
    run: Path | None = None  # run folder, whose heatmaps are measured
    model: str | None = None
    threshold: float = THRESHOLD  # of heatmap pixels
    reference: Path | None = None  # None: stages only
    missing: Missing = "error"  # nodes without a prediction
    nodes: int = NODES_PER_PATIENT  # of each patient; 0: any number
    bootstrap: int = REPLICATES  # resampled sets of patients; 0: no interval
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Classes of nodes or stages of patients, predicted and in the reference."""

    classes: tuple[str, ...]
    reference: list[str]
    predicted: list[str]
    patients: list[str]  # of each row
    reason: str = ""  # why there are none


def run_stage(options: StageOptions, *, print_line: PrintLine = log.info) -> dict[str, Any]:
    """Stage patients, and compare stages and nodes with a reference.

    Parameters
    ----------
    options : StageOptions
    print_line : callable
        Called with each line for the user.

    Returns
    -------
    metrics : dict
        As written to ``metrics.json``.

    Raises
    ------
    EvaluationError
        If the files contradict each other or themselves, naming the file, and the patient or line.
    """
    check_options(options)
    predictions, measured = _read_predictions(options)
    reference = read_stage_table(options.reference) if options.reference else None
    notes = _complete(predictions, reference, options)
    unscored = [node.slide_id for node in measured if node.n_regions is None]
    if unscored:
        notes.append(
            f"{pluralize(len(unscored), 'slide')} without a heatmap, counted as negative: "
            f"{name_some(unscored)}"
        )
    for name, table in (("predictions", predictions), ("reference", reference)):
        if table:
            print_line(f"{name}: {table.count()}")
    for note in notes:
        print_line(f"note: {note}")
    metrics, lines = _compare(predictions, reference, options)
    inputs = _list_inputs(options, measured)
    write_csv(options.out / "stages.csv", _COLUMNS, _list_rows(predictions, reference))
    if options.run:
        rows = [[getattr(node, name) for name in _NODE_COLUMNS] for node in measured]
        write_csv(options.out / "nodes.csv", _NODE_COLUMNS, rows)
    write_json(
        options.out / "inputs.json",
        {
            "version": __version__,
            "settings": {k: v for k, v in asdict(options).items() if k not in _PATHS},
            "inputs": [
                {"what": what, "file": path.name, "sha256": digest_file(path)}
                for what, path in inputs
            ],
            "notes": notes,
        },
    )
    write_json(options.out / "metrics.json", metrics)
    for line in lines:
        print_line(line)
    return metrics


def check_options(options: StageOptions) -> None:
    """Refuse options that contradict each other or cannot be; reads no file.

    Raises
    ------
    EvaluationError
        Naming the option.
    """
    if (options.predictions is None) == (options.run is None):
        raise EvaluationError("give either --predictions FILE or --run RUN, with --model NAME")
    if (options.run is None) != (options.model is None):
        raise EvaluationError("--run and --model belong together: whose heatmaps are measured")
    if options.run is None and options.threshold != THRESHOLD:
        raise EvaluationError("--threshold is for the heatmaps of --run")
    if not 0 < options.threshold <= 1:
        raise EvaluationError(f"--threshold must be in (0, 1], got {options.threshold:g}")
    if options.nodes < 0 or options.bootstrap < 0:
        raise EvaluationError("--nodes and --bootstrap must not be negative")


def _read_predictions(options: StageOptions) -> tuple[StageTable, list["MeasuredNode"]]:
    if options.predictions is not None:
        return read_stage_table(options.predictions), []
    from wsi_pipeline.evaluation.pn_stage_run import measure_nodes, tabulate_nodes

    assert options.run is not None
    assert options.model is not None
    measured = measure_nodes(
        options.run,
        options.model,
        threshold=options.threshold,
        count_missing=options.missing == "negative",
    )
    return tabulate_nodes(options.run, measured), measured


def _list_inputs(
    options: StageOptions, measured: Sequence["MeasuredNode"]
) -> list[tuple[str, Path]]:
    """List what was read, and as what."""
    inputs = [("predictions", options.predictions), ("reference", options.reference)]
    found = [(what, path) for what, path in inputs if path]
    if options.run is not None and options.model is not None:
        run = RunFolder(options.run)
        paths = [run.heatmap(options.model, node.slide_id) for node in measured]
        found += [("heatmap", path) for path in paths if path.is_file()]
    return found


# ------------------------------------------------------------ what belongs together


def _complete(
    predictions: StageTable, reference: StageTable | None, options: StageOptions
) -> list[str]:
    """Check both tables, fill in missing nodes if asked to, and derive all stages."""
    notes = []
    if reference:
        check_numbers(reference, options.nodes)
        if contradictions := find_contradictions(reference):
            raise EvaluationError(
                f"{reference.path}: stages that contradict their nodes: "
                f"{name_some(contradictions)}; correct the stage or the nodes"
            )
        notes += _match(predictions, reference, options)
    fewer = check_numbers(predictions, options.nodes, fewer_allowed=options.missing == "negative")
    if fewer:
        notes.append(
            f"{pluralize(len(fewer), 'patient')} with fewer than {options.nodes} nodes, the others "
            f"counted as negative: {name_some(fewer)}"
        )
    if contradictions := find_contradictions(predictions):
        notes.append(
            f"{pluralize(len(contradictions), 'predicted stage')} not the one of the predicted "
            f"nodes, used as given: {name_some(contradictions)}"
        )
    for table in filter(None, (predictions, reference)):
        for patient in table.patients.values():
            patient.stage = patient.stage or table.stage_by_rule(patient)
    return notes


def _match(predictions: StageTable, reference: StageTable, options: StageOptions) -> list[str]:
    """Check that each patient and node of the reference is predicted, and no unknown node is."""
    notes = []
    absent = [p.name for key, p in reference.patients.items() if key not in predictions.patients]
    if absent:
        raise EvaluationError(
            f"{predictions.path}: no prediction of {pluralize(len(absent), 'patient')} in "
            f"{reference.path}: {name_some(absent)}; predict them, or take them out of the "
            "reference"
        )
    extra = [key for key in predictions.patients if key not in reference.patients]
    if extra:
        names = [predictions.patients.pop(key).name for key in extra]
        notes.append(
            f"{pluralize(len(names), 'patient')} not in the reference, left out: {name_some(names)}"
        )
    without, unknown = [], []
    with_nodes = any(patient.nodes for patient in predictions.patients.values())
    for key, true in reference.patients.items():
        own = predictions.patients[key]
        if true.nodes and (with_nodes or own.stage is None):
            for number in [n for n in true.nodes if n not in own.nodes]:
                without.append(true.node_names[number])
                own.nodes[number] = "negative"
                own.node_names[number] = true.node_names[number]
            unknown += [name for n, name in own.node_names.items() if n not in true.nodes]
    if unknown:
        lacking = f", which lists {name_some(without)} without a prediction" if without else ""
        raise EvaluationError(
            f"{predictions.path}: {pluralize(len(unknown), 'node')} not in {reference.path}"
            f"{lacking}: {name_some(unknown)}; rename them, or take them out"
        )
    return notes + _report_missing(predictions, without, options)


def _report_missing(
    predictions: StageTable, without: list[str], options: StageOptions
) -> list[str]:
    if not without:
        return []
    what = f"{pluralize(len(without), 'node')} without a prediction"
    if options.missing == "error":
        raise EvaluationError(
            f"{predictions.path}: {what}: {name_some(without)}; add their rows, or count them as "
            "negative with --missing negative"
        )
    return [f"{what}, counted as negative: {name_some(without)}"]


# ------------------------------------------------------------ metrics


def _compare(
    predictions: StageTable, reference: StageTable | None, options: StageOptions
) -> tuple[dict[str, Any], list[str]]:
    metrics: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    lines = _describe_stages(predictions)
    pairs = {
        "node": _pair_nodes(predictions, reference),
        "patient": _pair_patients(predictions, reference),
    }
    for level, own in pairs.items():
        metrics[level], reasons = _measure(own, options)
        undefined |= {f"{level}.{name}": why for name, why in reasons.items()}
        lines += _describe(level, metrics[level], reasons)
    metrics["bootstrap"] = (
        {"replicates": options.bootstrap, "seed": options.seed, "unit": "patient"}
        if options.bootstrap and reference
        else None
    )
    metrics["undefined"] = undefined
    return metrics, lines


def _pair_nodes(predictions: StageTable, reference: StageTable | None) -> Pairs:
    pairs = Pairs(NODE_CLASSES, [], [], [], _why_no_nodes(predictions, reference))
    if pairs.reason or reference is None:
        return pairs
    for key, true in reference.patients.items():
        found = predictions.patients[key].nodes
        for number, value in true.nodes.items():
            pairs.reference.append(value)
            pairs.predicted.append(found[number])
            pairs.patients.append(key)
    return pairs


def _why_no_nodes(predictions: StageTable, reference: StageTable | None) -> str:
    for name, table in (("reference", reference), ("predictions", predictions)):
        if table is None:
            return f"no {name}"
        if not any(patient.nodes for patient in table.patients.values()):
            return f"no nodes in the {name}"
    return ""


def _pair_patients(predictions: StageTable, reference: StageTable | None) -> Pairs:
    if reference is None:
        return Pairs(STAGES, [], [], [], "no reference")
    keys = list(reference.patients)
    true = [reference.patients[key].stage or "" for key in keys]
    found = [predictions.patients[key].stage or "" for key in keys]
    return Pairs(STAGES, true, found, keys)


def _measure(pairs: Pairs, options: StageOptions) -> tuple[dict[str, Any], dict[str, str]]:
    """Compute the metrics of nodes or patients, and why some are undefined."""
    names = ("kappa", "kappa_ci95", "accuracy", "accuracy_ci95")
    values: dict[str, Any] = {
        "n": len(pairs.reference),
        "n_patients": len(set(pairs.patients)),
        **dict.fromkeys(names),
        "classes": list(pairs.classes),
        "confusion": None,
        "ci95_method": {},
    }
    if pairs.reason:
        return values, dict.fromkeys(names, pairs.reason)
    confusion = count_pairs(pairs.reference, pairs.predicted, pairs.classes)
    kappa = float(quadratic_kappa(confusion))
    values["confusion"] = confusion.tolist()
    values["accuracy"] = float(np.trace(confusion) / confusion.sum())
    reasons = {}
    if np.isnan(kappa):
        reasons["kappa"] = "reference and prediction have one and the same class only"
    else:
        values["kappa"] = kappa
    if not options.bootstrap:
        return values, reasons
    resamples = draw_resamples(pairs.patients, n_replicates=options.bootstrap, seed=options.seed)
    for name, interval in _intervals(pairs, resamples).items():
        if isinstance(interval, Interval):
            values[f"{name}_ci95"] = [interval.low, interval.high]
            values["ci95_method"][name] = interval.method
        else:
            reasons[f"{name}_ci95"] = reasons.get(name, interval.reason)
    return values, reasons


def _intervals(pairs: Pairs, resamples: Resamples) -> dict[str, Any]:
    right = np.array([r == p for r, p in zip(pairs.reference, pairs.predicted, strict=True)])
    kappas = resampled_kappa(pairs.reference, pairs.predicted, pairs.classes, resamples.weights)
    return {
        "kappa": percentile_interval(kappas, resamples),
        "accuracy": share_interval(
            right.astype(np.int64), np.ones(right.size, dtype=np.int64), resamples
        ),
    }


# ------------------------------------------------------------ what is written and printed


def _list_rows(
    predictions: StageTable, reference: StageTable | None
) -> list[tuple[str, str | None, str | None]]:
    """List patients and nodes as CAMELYON17 does, with the reference in a column of its own."""
    rows: list[tuple[str, str | None, str | None]] = []
    for key, patient in predictions.patients.items():
        true = reference.patients[key] if reference else PatientRows(patient.name)
        rows.append((f"{patient.name}.zip", patient.stage, true.stage))
        rows += [
            (f"{patient.node_names[number]}.tif", value, true.nodes.get(number))
            for number, value in sorted(patient.nodes.items())
        ]
    return rows


def _describe_stages(predictions: StageTable) -> list[str]:
    stages = [patient.stage for patient in predictions.patients.values()]
    counts = ", ".join(f"{stage} {stages.count(stage)}" for stage in STAGES)
    return [f"predicted stages: {counts}"]


def _describe(level: str, values: dict[str, Any], reasons: dict[str, str]) -> list[str]:
    title = f"{level}s"
    if values["confusion"] is None:
        return [f"{title}: not compared, {reasons['kappa']}"]
    lines = [f"{title}, rows reference, columns prediction:"]
    lines += _table(values["classes"], values["confusion"])
    for name, words in (("kappa", "quadratic weighted kappa"), ("accuracy", "accuracy")):
        lines.append(f"{title}, {words}: {_figure(values, name, reasons)}")
    return lines


def _figure(values: dict[str, Any], name: str, reasons: dict[str, str]) -> str:
    value, interval = values[name], values[f"{name}_ci95"]
    if value is None:
        return f"undefined, {reasons[name]}"
    if interval:
        return f"{value:.4f} (95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
    why = reasons.get(f"{name}_ci95")
    return f"{value:.4f}" + (f" (no 95 % interval, {why})" if why else "")


def _table(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[str]:
    width = max(map(len, classes)) + 2
    header = " " * width + "".join(name.rjust(width) for name in classes)
    return [header] + [
        name.rjust(width) + "".join(str(n).rjust(width) for n in row)
        for name, row in zip(classes, confusion, strict=True)
    ]
