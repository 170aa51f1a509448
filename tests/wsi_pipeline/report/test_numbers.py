"""Every number that the report shows of a model, computed again from the run folder's tables.

By scikit-learn or by brute force; nothing of the evaluation's own arithmetic is used but the draw
of the resampled patients, which is chance and not arithmetic.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import t as student
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    roc_auc_score,
)

from tests.helpers import fake_run
from tests.helpers.html_pages import Page
from tiling.contracts import Annotation
from tiling.store import PatchStore
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import Detections, Heatmap, Scores
from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.inputs import EvaluationSlide
from wsi_pipeline.evaluation.localisation import draw_mask, localise
from wsi_pipeline.evaluation.run_evaluation import evaluate_run
from wsi_pipeline.report.build import LECTURE_CONFUSION, build_report, render_report
from wsi_pipeline.report.gather import gather_run

MODEL, REPLICATES, SEED, RATES = "patchnet", 40, 3, (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SLIDES = [(f"tr_{i}", f"p{i}", i % 2, "train") for i in range(2)]
SLIDES += [(f"va_{i}", f"q{i}", i % 2, "val") for i in range(4)]
# Two patients have two slides each.
SLIDES += [(f"te_{i}", f"r{i % 7}", int(i % 3 > 0), "test") for i in range(9)]


def make_slide(run, slide_id, patient, label, split, rng):
    """A slide as the work module would hand it over; scores of a middling model."""
    with PatchStore.open(run / "tiles" / f"{slide_id}.zarr") as store:
        coords, labels = store.coords, store.label
    scores = expit(rng.normal(2 * labels - 1.2 + rng.normal(0, 0.4), 0.8)).astype(np.float32)
    scores[5] = np.nan
    labels = labels.copy()
    labels[9] = -1
    side = fake_run.PATCH_L0
    tumour = shapely.MultiPolygon()
    if label:
        boxes = shapely.box(*coords[labels == 1].T, *(coords[labels == 1] + side).T)
        tumour = shapely.MultiPolygon([shapely.union_all(boxes)])
    shape = (fake_run.SIZE[1] // side, fake_run.SIZE[0] // side)
    heatmap = Heatmap(scores.reshape(shape), (side, side), fake_run.SIZE)
    hot = np.flatnonzero(scores > 0.8)
    inside = np.flatnonzero(labels == 1)
    return EvaluationSlide(
        slide_id=slide_id,
        patient=patient,
        split=split,
        label=label,
        scores=Scores(coords, scores, {"trained_on": {}}, {}),
        patch_labels=labels,
        lesion_pairs=np.stack([inside, np.zeros_like(inside)], axis=1),
        lesion_ids=["1"] if label else [],
        annotation=Annotation(tumour, tuple(tumour.geoms)),
        slide_mpp=(0.25, 0.25),
        slide_size=fake_run.SIZE,
        detections=Detections(
            coords[hot, 0] + side // 2, coords[hot, 1] + side // 2, scores[hot].astype(np.float64)
        ),
        localisation=localise(heatmap.values, draw_mask(tumour, heatmap)),
    )


def make_run(folder, seed):
    """Make a small run folder whose evaluation is real."""
    fake_run.make_run(folder, models=(MODEL,), pictures=False, slides=SLIDES)
    for old in (folder / "evaluation" / MODEL).iterdir():
        old.unlink()
    rng = np.random.default_rng(seed)
    evaluate_run(
        [make_slide(folder, *slide, rng) for slide in SLIDES],
        settings=EvaluateConfig(bootstrap=REPLICATES, seed=SEED),
        out=folder / "evaluation" / MODEL,
        model=MODEL,
        read_patch=lambda slide_id, patch: np.full((32, 32, 3), patch % 251, np.uint8),
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "real", SEED)
    build_report(folder)
    return folder


class Tables:
    """The tables of one model, and what follows from them."""

    def __init__(self, folder):
        self.folder = folder
        self.slides = self.rows("slides.csv")
        self.cohort = {row["slide_id"]: row for row in self.rows("cohort.csv")}
        self.weights = draw_resamples(
            [self.cohort[row["slide_id"]]["patient"] for row in self.slides],
            n_replicates=REPLICATES,
            seed=SEED,
        ).weights
        self.index = {row["slide_id"]: i for i, row in enumerate(self.slides)}
        self.patches = self.rows("patches.csv")

    def rows(self, name):
        with (self.folder / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def pool(self, name):
        rows = [r for r in self.rows(name) if r["score"] and r["label"] != "-1"]
        labels = np.array([int(r["label"]) for r in rows])
        scores = np.array([float(r["score"]) for r in rows])
        return labels, scores, [r["slide_id"] for r in rows]

    def interval(self, figure, members):
        """Percentile interval of figure(weight of each member), members by their slide."""
        at = [self.index[slide_id] for slide_id in members]
        values = np.array([figure(row[at]) for row in self.weights], float)
        return np.nanquantile(values, [0.025, 0.975]).tolist()


def youden(rows, threshold):
    """Sensitivity + specificity - 1 on the validation slides."""
    rate = {
        label: np.mean([float(r["score"]) >= threshold for r in rows if r["label"] == label])
        for label in "01"
    }
    return rate["1"] - rate["0"]


def ratio(part, whole):
    return part / whole if whole else np.nan


def weighted(metric, labels, scores):
    """A metric of scikit-learn as a function of weights; NaN where a class it needs is missing."""
    needed = (0, 1) if metric is roc_auc_score else (1,)

    def figure(w):
        defined = all(w[labels == kind].any() for kind in needed)
        return metric(labels, scores, sample_weight=w) if defined else np.nan

    return figure


def wilson(share, n):
    """Wilson 1927: the shares at which the one that is observed is 1.96 standard errors away."""
    z = 1.959963984540054
    ends = np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share])
    return sorted(float(end) for end in ends.real)


def by_patient(share, variance, n):
    """Wilson's ends with the effective number of units; `n` units of each patient."""
    if share in (0, 1):
        return wilson(share, sum(n) ** 2 / sum(k * k for k in n))
    units = min(sum(n), share * (1 - share) / variance)
    return wilson(share, units * (1.959963984540054 / student.ppf(0.975, len(n) - 1)) ** 2)


def with_share(tables, name, right, among, members):
    """A share and its interval, from single units: patches, slides, patients."""
    units = {}
    for slide_id, good, counts in zip(members, right, among, strict=True):
        if counts:
            units.setdefault(tables.cohort[slide_id]["patient"], []).append(int(good))
    x, n = [sum(u) for u in units.values()], [len(u) for u in units.values()]
    share = sum(x) / sum(n)
    found = {name: share}
    if max(n) == 1:
        return {**found, f"{name}_ci95": wilson(share, sum(n))}
    if len(n) == 1:
        return found
    spread = sum((a - share * b) ** 2 for a, b in zip(x, n, strict=True))
    variance = len(n) / (len(n) - 1) * spread / sum(n) ** 2
    return {**found, f"{name}_ci95": by_patient(share, variance, n)}


def with_interval(tables, name, figure, members, label_sets):
    """A figure and its percentiles; `label_sets`: members of each class it needs."""
    patients = [{tables.cohort[s]["patient"] for s in some} for some in label_sets]
    found = {name: float(figure(np.ones(len(members), int)))}
    ends = tables.interval(figure, members)
    if min(map(len, patients)) < 2 or ends[0] == ends[1]:
        return found
    return {**found, f"{name}_ci95": ends}


def classes(labels, members):
    return [[m for m, label in zip(members, labels, strict=True) if label == k] for k in (0, 1)]


def patch_section(tables):
    labels, scores, members = tables.pool("patches.csv")
    called = scores >= 0.75
    tn, fp, fn, tp = map(int, confusion_matrix(labels, called).ravel())
    found = {
        "n": len(labels),
        "n_ignored": sum(r["label"] == "-1" for r in tables.patches),
        "n_unreadable": sum(r["score"] == "" for r in tables.patches),
        **{"tp": tp, "fp": fp, "fn": fn, "tn": tn},
        "average_precision": average_precision_score(labels, scores),
    }
    ones = np.ones(len(labels))
    for name, right, among in (
        ("accuracy", called == (labels == 1), ones),
        ("precision", labels == 1, called),
        ("recall", called, labels == 1),
    ):
        found |= with_share(tables, name, right, among, members)
    f1 = lambda w: ratio(  # noqa: E731
        2 * (w * called * (labels == 1)).sum(), (w * called).sum() + (w * (labels == 1)).sum()
    )
    auc = weighted(roc_auc_score, labels, scores)
    found |= with_interval(tables, "f1", f1, members, [members])
    return found | with_interval(tables, "roc_auc", auc, members, classes(labels, members))


def delong(labels, scores):
    """DeLong 1988, straight from the placement values."""
    wins = [[(a > b) + (a == b) / 2 for b in scores[labels == 0]] for a in scores[labels == 1]]
    wins = np.array(wins)
    spread = sum(np.var(wins.mean(axis=k), ddof=1) / wins.shape[1 - k] for k in (0, 1))
    auc, half = wins.mean(), 1.959963984540054 * np.sqrt(spread)
    return [max(0.0, auc - half), min(1.0, auc + half)]


def ranked_section(tables, labels, scores, members, threshold):
    labels, scores = np.array(labels), np.array(scores)
    right = (scores >= threshold) == (labels == 1)
    found = {
        "n": len(labels),
        "n_positive": int(labels.sum()),
        "n_unscored": 0,
        "threshold": threshold,
        "roc_auc_delong_ci95": delong(labels, scores),
    }
    for name, metric in {
        "roc_auc": roc_auc_score,
        "average_precision": average_precision_score,
    }.items():
        figure = weighted(metric, labels, scores)
        found |= with_interval(tables, name, figure, members, classes(labels, members))
    for name, among in {
        "accuracy": np.ones(len(labels)),
        "sensitivity": labels == 1,
        "specificity": labels == 0,
    }.items():
        found |= with_share(tables, name, right, among, members)
    return found


def slide_section(tables, threshold):
    best = {}  # the largest patch score of each slide, from the patches themselves
    for row in tables.patches:
        if row["score"]:
            best[row["slide_id"]] = max(best.get(row["slide_id"], 0), float(row["score"]))
    members = [r["slide_id"] for r in tables.slides]
    labels = [int(r["label"]) for r in tables.slides]
    section = ranked_section(tables, labels, [best[m] for m in members], members, threshold)
    return {**section, "bootstrap": REPLICATES}


def patient_section(tables, threshold):
    groups = {}
    for row in tables.slides:
        groups.setdefault(tables.cohort[row["slide_id"]]["patient"], []).append(row)
    labels = [max(int(r["label"]) for r in rows) for rows in groups.values()]
    scores = [max(float(r["score"]) for r in rows) for rows in groups.values()]
    members = [rows[0]["slide_id"] for rows in groups.values()]
    return ranked_section(tables, labels, scores, members, threshold)


def metastasis_section(tables, threshold):
    normal = [r for r in tables.slides if r["label"] == "0"]
    found = {"n_normal": len(normal), "n_unknown": 0}
    for kind, low, high in (("macro", 2000, np.inf), ("micro", 200, 2000), ("itc", 0, 200)):
        sizes = {s: float(r["largest_lesion_um"] or -1) for s, r in tables.cohort.items()}
        own = [r for r in tables.slides if low < sizes[r["slide_id"]] <= high]
        found[kind] = {"n": len(own)}
        if own:
            rows = [r for r in tables.slides if r in own or r in normal]
            labels = np.array([int(r["label"]) for r in rows])
            scores = np.array([float(r["score"]) for r in rows])
            members = [r["slide_id"] for r in rows]
            auc = weighted(roc_auc_score, labels, scores)
            sets = classes(labels, members)
            found[kind] |= with_interval(tables, "roc_auc", auc, members, sets)
            found[kind] |= with_share(
                tables, "sensitivity", scores >= threshold, labels == 1, members
            )
    return found


def calibration_section(tables):
    labels, scores, _ = tables.pool("patches.csv")
    val_labels, val_scores, _ = tables.pool("validation_patches.csv")
    clip = lambda p: np.clip(p, 1e-7, 1 - 1e-7)  # noqa: E731
    z = logit(clip(val_scores))
    fitted = minimize_scalar(
        lambda u: log_loss(val_labels, expit(z / np.exp(u))), bounds=(-3, 3), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    temperature = float(np.exp(fitted.x))
    found = {"n": len(labels), "n_val": len(val_labels), "n_bins": 15, "temperature": temperature}
    tempered = expit(logit(clip(scores)) / temperature)
    for suffix, p in (("", scores), ("_calibrated", tempered)):
        gaps = 0.0
        for k in range(15):
            last = k == 14
            own = (p >= k / 15) & ((p < (k + 1) / 15) | last)
            if own.any():
                gaps += own.mean() * abs(p[own].mean() - labels[own].mean())
        found |= {
            f"ece{suffix}": gaps,
            f"brier{suffix}": brier_score_loss(labels, p),
            f"nll{suffix}": log_loss(labels, clip(p)),
        }
    return found


def localisation_section(tables):
    rows = tables.rows("localisation.csv")
    found = {"n": len(rows), "skipped": len(tables.slides) - len(rows), "threshold": 0.5}
    for name in ("exact_match", "recall", "roc_auc"):
        values = [float(r[name]) for r in rows if r[name]]
        found[f"average_{name}"] = np.mean(values)
        if name != "exact_match":
            found |= {f"{name}_n": len(values), f"{name}_skipped": len(rows) - len(values)}
    return found


def errors_section(tables):
    labels, scores, _ = tables.pool("patches.csv")
    best = [r["best_score"] for r in tables.rows("lesions_patch.csv")]
    shown = tables.rows("errors.csv")
    false = sum((labels == 0) & (scores >= 0.75))
    assert all(Path(tables.folder / r["picture"]).is_file() for r in shown if r["picture"])
    kinds = [r["kind"] for r in shown]
    assert kinds.count("false_positive") == min(12, false)
    return {
        "n_false_positives": int(false),
        "n_missed_lesions": sum(b == "" or float(b) < 0.75 for b in best),
        "n_shown": len(shown),
        "threshold": 0.75,
    }


def sensitivities(false, n_slides, best, n_lesions):
    """Read a FROC curve at the rates; (score, weight) of false positives and of lesions."""
    points = [(0.0, 0.0)]
    for t in sorted({s for s, w in [*false, *best] if w and s is not None}, reverse=True):
        fps = sum(w for s, w in false if s >= t) / n_slides
        points.append((fps, sum(w for s, w in best if s is not None and s >= t) / n_lesions))
    read = []
    for rate in RATES:
        x0, y0 = max(p for p in points if p[0] <= rate)
        beyond = [p for p in points if p[0] > rate]
        if beyond:
            x1, y1 = min(beyond)
            y0 += (y1 - y0) * (rate - x0) / (x1 - x0)
        read.append(y0)
    return read


def choose_points(false, n_slides, best, n_lesions):
    """The threshold for each rate: most false positives, then most lesions, then the highest."""
    points = [(0.0, 0.0, np.inf)]
    for t in {s for s in [*false, *best] if s is not None}:
        found = sum(s is not None and s >= t for s in best)
        points.append((sum(s >= t for s in false) / n_slides, found / n_lesions, t))
    chosen = [max(p for p in points if p[0] <= rate) for rate in RATES]
    return [
        {"avg_fps": a, "sensitivity": b} | ({"threshold": t} if np.isfinite(t) else {})
        for a, b, t in chosen
    ]


def froc_section(tables, definition):
    lesions = [
        (r["slide_id"], float(r["best_score"]) if r["best_score"] else None)
        for r in tables.rows(f"lesions_{definition}.csv")
    ]
    normal = {r["slide_id"] for r in tables.slides if r["label"] == "0"}
    if definition == "camelyon16":
        rows = [r for r in tables.rows("detections.csv") if r["outcome"] == "false_positive"]
        false = [(r["slide_id"], float(r["prob"])) for r in rows]
        counted = {r["slide_id"] for r in tables.slides}
    else:
        rows = [r for r in tables.patches if r["slide_id"] in normal and r["score"]]
        false = [(r["slide_id"], float(r["score"])) for r in rows]
        counted = normal

    def read(weights):
        of = lambda slide_id: int(weights[tables.index[slide_id]])  # noqa: E731
        n_slides, n_lesions = sum(map(of, counted)), sum(of(s) for s, _ in lesions)
        if not n_slides or not n_lesions:
            return [np.nan] * len(RATES)
        weigh = lambda pairs: [(p, of(s)) for s, p in pairs]  # noqa: E731
        return sensitivities(weigh(false), n_slides, weigh(lesions), n_lesions)

    as_is = read(np.ones(len(tables.slides), int))
    replicates = np.array([read(w) for w in tables.weights])
    per_patient = {}
    for slide_id, _ in lesions:
        patient = tables.cohort[slide_id]["patient"]
        per_patient[patient] = per_patient.get(patient, 0) + 1
    n = list(per_patient.values())
    variances = np.nanvar(replicates, axis=0) * len(n) / (len(n) - 1)
    ends = [by_patient(p, v, n) for p, v in zip(as_is, variances, strict=True)]
    names = ["0.25", "0.5", "1", "2", "4", "8"]
    points = choose_points(
        [s for _, s in false], len(counted), [s for _, s in lesions], len(lesions)
    )
    return {
        "operating_points": dict(zip(names, points, strict=True)),
        "n_slides": len(tables.slides),
        "n_normal": len(normal),
        "n_lesions": len(lesions),
        "sensitivity_at": dict(zip(names, as_is, strict=True)),
        "score": np.mean(as_is),
        "score_ci95": np.nanquantile(replicates.mean(axis=1), [0.025, 0.975]).tolist(),
        "sensitivity_at_ci95": dict(zip(names, ends, strict=True)),
    }


@pytest.fixture(scope="module")
def tables(run):
    return Tables(run / "evaluation" / MODEL)


@pytest.fixture(scope="module")
def metrics(run):
    return json.loads((run / "evaluation" / MODEL / "metrics.json").read_text())


@pytest.fixture(scope="module")
def again(tables, metrics):
    threshold = metrics["slide"]["threshold"]
    rows = tables.rows("validation.csv")
    assert youden(rows, threshold) == max(youden(rows, float(r["score"])) for r in rows)
    return {
        "patch": patch_section(tables),
        "slide": slide_section(tables, threshold),
        "patient": patient_section(tables, threshold),
        "metastasis": metastasis_section(tables, threshold),
        "calibration": calibration_section(tables),
        "localisation": localisation_section(tables),
        "errors": errors_section(tables),
        "froc_camelyon16": froc_section(tables, "camelyon16"),
        "froc_patch": froc_section(tables, "patch"),
    }


def leaves(value, path=""):
    """Numbers of a JSON value by their path."""
    if isinstance(value, dict):
        return {
            k: v for key, part in value.items() for k, v in leaves(part, f"{path}.{key}").items()
        }
    if isinstance(value, list):
        return {
            k: v for i, part in enumerate(value) for k, v in leaves(part, f"{path}.{i}").items()
        }
    return {path: float(value)} if isinstance(value, int | float) else {}


def stated(metrics, section):
    """A section of metrics.json; for a FROC all but the curve, and its intervals."""
    found = dict(metrics[section])
    if section.startswith("froc"):
        found |= {"sensitivity_at_ci95": found.pop("bootstrap")["sensitivity_at_ci95"]}
        del found["curve"], found["band"]
    return found


@pytest.mark.parametrize(
    "section",
    [
        "patch", "slide", "patient", "metastasis", "calibration", "localisation", "errors",
        "froc_camelyon16", "froc_patch",
    ],
)  # fmt: skip
def test_every_figure_is_computed_again(metrics, again, section):
    given, found = leaves(stated(metrics, section)), leaves(again[section])
    assert given.keys() - {".n_itc"} == found.keys()
    loose = {".temperature", ".ece_calibrated", ".brier_calibrated", ".nll_calibrated"}
    for path, value in found.items():
        assert given[path] == pytest.approx(value, rel=1e-5 if path in loose else 1e-9, abs=1e-9), (
            path
        )


def test_the_report_shows_these_numbers_and_no_others(run, tables, again):
    page = Page(render_report(gather_run(run), context=("lecture", "camelyon16")))
    shown = np.array(page.numbers, float)
    found = [v for section in again.values() for v in leaves(section).values()]
    # Each kind of figure has its place on the page; settings and the draw's size are no figures.
    kept = {n for n in found if n != REPLICATES}
    missing = [n for n in kept if not np.isclose(shown, n, rtol=1e-5, atol=1e-9).any()]
    assert missing == []

    known = [*found, *LECTURE_CONFUSION.values(), 0.0]
    for name in ("slides", "validation", "lesions_camelyon16", "lesions_patch", "errors"):
        for row in tables.rows(f"{name}.csv"):
            known += [float(v) for v in row.values() if is_number(v)]
    known += cohort_numbers(run)
    known = np.array(known)
    unknown = [n for n in shown if not np.isclose(known, n, rtol=1e-5, atol=1e-9).any()]
    assert unknown == []


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def cohort_numbers(run):
    """Counts of slides, patients, lesions and patches, by split and over all, and by slide."""
    counts = []
    stores = {}
    for slide_id, *_ in SLIDES:
        with PatchStore.open(run / "tiles" / f"{slide_id}.zarr") as store:
            stores[slide_id] = store.label
    groups = [[s for s in SLIDES if s[3] == split] for split in ("train", "val", "test")]
    for group in [*groups, SLIDES, *([s] for s in SLIDES)]:
        label = np.concatenate([stores[s[0]] for s in group])
        tumour = sum(s[2] for s in group)
        counts += [len({s[1] for s in group}), len(group), tumour, len(group) - tumour]
        counts += [label.size, *(int((label == kind).sum()) for kind in (1, 0, -1))]
    return counts


def test_the_papers_curves_are_those_of_the_tables(run, tables):
    labels, scores, _ = tables.pool("patches.csv")
    with (run / "figures" / MODEL / "roc_patches.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["part"] == "line"]
    x, y = (np.array([float(r[name]) for r in rows]) for name in ("1 - specificity", "sensitivity"))
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores))


def test_the_sweep_is_drawn_in_steps(run, tables):
    labels, scores, _ = tables.pool("patches.csv")
    with (run / "figures" / MODEL / "sweep.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["series"] == "recall"]
    x, y = (np.array([float(r[name]) for r in rows]) for name in ("threshold", "share"))
    assert (np.diff(x) >= 0).all()
    assert ((np.diff(x) == 0) | (np.diff(y) == 0)).all()
    # Where a step ends, its height is the recall at that very threshold.
    ends = np.flatnonzero(np.diff(x) > 0) + 1
    for at in ends[::50]:
        assert y[at] == pytest.approx((scores[labels == 1] >= x[at]).mean())
