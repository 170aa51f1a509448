"""The papers' linear models on a folder of images: one table, as in PatchNet paper 1."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress
from tiling.wording import format_percent, pluralize
from wsi_pipeline.baselines.features import Features, compute_features
from wsi_pipeline.baselines.textures import Row, fit_classifier, list_rows
from wsi_pipeline.cohort.image_folder import ImageEntry, as_slides, list_images, split_images
from wsi_pipeline.cohort.image_store import choose_equal, raise_to_parity
from wsi_pipeline.cohort.splits import assign_folds, assign_splits
from wsi_pipeline.config.reading import SplitConfig
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import ConfigError, ManifestError
from wsi_pipeline.evaluation.bootstrap import Resamples, draw_resamples, weighted_roc_auc
from wsi_pipeline.evaluation.intervals import Interval, by_class, percentile_interval

Scheme = Literal["given", "shares", "folds", "groups"]
Balance = Literal["none", "upsample", "equal"]

REPLICATES = 1000  # resampled sets of patients, for intervals

_TITLES = {"svm": "SVM", "logistic": "logistic regression"}
_NAMES = {"pftas": "PFTAS", "haralick": "Haralick", "zernike": "Zernike", "lbp": "LBP"} | {
    "shape": "shape"
}


@dataclass(frozen=True)
class BaselineOptions:
    """Options of the baselines."""

    scheme: Scheme | None = None  # None: given where some image has a split, else shares
    splits: SplitConfig = field(default_factory=SplitConfig)  # shares, or how many folds (None: 5)
    balance: Balance = "none"  # of the training images
    nonzero_is_object: bool = False  # shape features of the pixels above 0, where no mask is named
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """Result of one model; shares of images, None if a split is empty."""

    row: Row
    n_features: int
    train: float
    val: float | None
    test: float | None
    predicted: NDArray[np.int8]  # (n,) of the images when they were not trained on; -1: never
    # (n,) by which an image is ranked: signed distance, larger for class 1; NaN: never held out
    decision: NDArray[np.float64]
    roc_auc: float | None  # of the test images (without any: val); None if a class is missing
    roc_auc_ci95: tuple[float, float] | None  # by resampled patients
    undefined: str = ""  # why there is no ROC AUC, or no interval


@dataclass(frozen=True)
class Baselines:
    """All models on one folder."""

    classes: tuple[str, str]
    entries: list[ImageEntry]  # those that could be read, with a class
    results: list[Result]
    problems: dict[str, str]  # by image_id, why it was left out
    n_by_split: dict[str, int]  # of the last round, where there are several
    rounds: int  # how often each model was trained
    largest: tuple[str, float] | None  # larger class of the images ranked; its share of them
    n_kept: int  # images whose features an earlier call had computed
    without_shape: str  # why paper 2's model of nuclei is not there; empty: it is


def run_baselines(
    folder: Path,
    config: ImagesConfig,
    options: BaselineOptions,
    *,
    keep: Path | None = None,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> Baselines:
    """Train and test all linear models of the papers on a folder of images.

    Parameters
    ----------
    folder : Path
    config : ImagesConfig
        Its classes, channels, size (none is needed) and table.
    options : BaselineOptions
    keep : Path, optional
        Folder that keeps the features of each image, for a later call on the same images.
    workers : int
        Processes that compute features.
    on_progress : function, optional
        Called with images done and to do.

    Raises
    ------
    ManifestError, ConfigError, ModelError
        If the folder is not such a data set, or the training or test set is empty.
    """
    own_splits = options.scheme in (None, "given")
    listed, classes = list_images(folder, config, with_splits=own_splits)
    listed = [e for e in listed if e.label >= 0]
    if not listed:
        raise ManifestError(f"{folder}: no image has a class; sort them into class folders")
    list(_rounds(folder, listed, options))  # refuses invalid splits before the long computation
    has_masks = options.nonzero_is_object or all(e.mask for e in listed)
    computed = compute_features(
        folder,
        listed,
        config,
        with_shape=has_masks,
        keep=keep,
        workers=workers,
        on_progress=on_progress,
    )
    problems = {e.image_id: found.problem for e, found in computed if found.problem}
    read = [(e, found.features) for e, found in computed if not found.problem]
    without_shape = "" if has_masks else _describe_missing_masks(listed)
    if has_masks:
        without_shape = _describe_empty_masks(read, classes)
        has_masks = not without_shape
    if has_masks:
        empty = {e for e, values in read if "shape" not in values}
        problems |= {e.image_id: f"{e.file}: its mask contains no object" for e in empty}
        read = [(e, values) for e, values in read if e not in empty]
    entries = [e for e, _ in read]
    if not entries:
        raise ManifestError(f"{folder}: no image could be read: {next(iter(problems.values()))}")
    names = dict.fromkeys(part for row in list_rows(with_shape=has_masks) for part in row.features)
    features = {name: np.stack([values[name] for _, values in read]) for name in names}
    rounds = list(_rounds(folder, entries, options))
    labels = np.array([e.label for e in entries], np.int8)
    ranked = _Ranked.of(entries, labels, rounds, seed=options.seed)
    results = [
        _measure(row, features, labels, rounds, options, ranked)
        for row in list_rows(with_shape=has_masks)
    ]
    last = rounds[-1]
    return Baselines(
        classes=classes,
        entries=entries,
        results=results,
        problems=problems,
        n_by_split={name: int((last == name).sum()) for name in ("train", "val", "test")},
        rounds=len(rounds),
        largest=ranked.largest_class(classes),
        n_kept=sum(found.kept for _, found in computed),
        without_shape=without_shape,
    )


def _describe_missing_masks(listed: Sequence[ImageEntry]) -> str:
    n = sum(not entry.mask for entry in listed)
    if n == len(listed):
        return "no masks: name them in a table, or give --nonzero-is-object"
    return f"{n} of {pluralize(len(listed), 'image')} have no mask, and it needs one of each"


def _describe_empty_masks(
    read: Sequence[tuple[ImageEntry, Features]], classes: tuple[str, str]
) -> str:
    """Explain that a class has no objects, as where masks outline the tumour; empty: both have."""
    for label, name in enumerate(classes):
        own = [values for e, values in read if e.label == label]
        if own and not any("shape" in values for values in own):
            return f"no mask of the class {name} contains an object"
    return ""


# ------------------------------------------------------------ which images train


def _rounds(
    folder: Path, entries: Sequence[ImageEntry], options: BaselineOptions
) -> Iterator[NDArray[np.str_]]:
    """Yield, for each round of training, the split of every image: (n,) of names."""
    scheme = options.scheme
    if scheme is None:
        scheme = "given" if any(e.split for e in entries) else "shares"
    if scheme == "given":
        yield np.array([e.split or "" for e in entries])
        return
    unsplit = [replace(e, split=None) for e in entries]
    slides = as_slides(folder, unsplit)
    if scheme == "shares":
        splits = assign_splits(
            slides,
            val_fraction=options.splits.val_fraction,
            test_fraction=options.splits.test_fraction,
            seed=options.seed,
        )
        yield np.array([e.split for e in split_images(unsplit, splits)])
        return
    patients = sorted({e.patient for e in entries})
    folds = 5 if options.splits.folds is None else options.splits.folds
    if scheme == "groups" or folds == "patients":
        if len(patients) == len(entries):
            raise ConfigError(
                "--split groups leaves one patient out at a time, but no image has a patient; "
                "name patients in a table (images.table) or by images.patient_pattern, or use "
                "--split folds --folds 5"
            )
        fold_of = {patient: number for number, patient in enumerate(patients)}
    else:
        fold_of = assign_folds(slides, folds=folds, seed=options.seed)
    of_image = np.array([fold_of[e.patient] for e in entries])
    for fold in range(max(fold_of.values()) + 1):
        yield np.where(of_image == fold, "test", "train")


def _measure(
    row: Row,
    features: dict[str, NDArray[np.float64]],
    labels: NDArray[np.int8],
    rounds: Sequence[NDArray[np.str_]],
    options: BaselineOptions,
    ranked: "_Ranked",
) -> Result:
    """Train one model in each round; held-out images are counted over all rounds."""
    x = np.concatenate([features[name] for name in row.features], axis=1)
    predicted = np.full(len(labels), -1, np.int8)
    decision = np.full(len(labels), np.nan)
    shares = []
    for split in rounds:
        train = np.flatnonzero(split == "train")
        chosen = train[_balance(labels[train], options)]
        model = fit_classifier(row.classifier, x[chosen], labels[chosen])
        answers = np.asarray(model.predict(x), np.int8)
        shares.append(float((answers[train] == labels[train]).mean()))
        held_out = (split == "val") | (split == "test")
        predicted[held_out] = answers[held_out]
        decision[held_out] = model.decision_function(x[held_out])
    right = predicted == labels
    accuracy = {
        name: _mean(right[np.any([split == name for split in rounds], axis=0)])
        for name in ("val", "test")
    }
    roc_auc, interval, undefined = ranked.measure(decision)
    return Result(
        row,
        x.shape[1],
        float(np.mean(shares)),
        **accuracy,
        predicted=predicted,
        decision=decision,
        roc_auc=roc_auc,
        roc_auc_ci95=interval,
        undefined=undefined,
    )


@dataclass(frozen=True)
class _Ranked:
    """The images whose ranking is measured, and resampled sets of them."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    resamples: Resamples | None  # None: there are no images

    @classmethod
    def of(
        cls,
        entries: Sequence[ImageEntry],
        labels: NDArray[np.int8],
        rounds: Sequence[NDArray[np.str_]],
        *,
        seed: int,
    ) -> Self:
        """Choose the images of the test split of any round; of val, where there are none."""
        parts = (np.any([r == name for r in rounds], axis=0) for name in ("test", "val"))
        rows = next((np.flatnonzero(part) for part in parts if part.any()), np.empty(0, np.int64))
        patients = [entries[row].patient for row in rows.tolist()]
        drawn = draw_resamples(patients, n_replicates=REPLICATES, seed=seed) if patients else None
        return cls(rows, labels[rows].astype(np.int64), drawn)

    def measure(
        self, decision: NDArray[np.float64]
    ) -> tuple[float | None, tuple[float, float] | None, str]:
        """Compute the ROC AUC and its interval by patient, and explain which of them is None."""
        if self.resamples is None:
            return None, None, "no ROC AUC: no test or validation images"
        if np.unique(self.labels).size < 2:
            return None, None, "no ROC AUC: the images tested are of one class"
        values = decision[self.rows]
        once = np.ones((1, len(values)), np.int64)
        found = percentile_interval(
            weighted_roc_auc(self.labels, values, self.resamples.weights),
            self.resamples,
            kinds=by_class(self.labels, "images"),
        )
        value = float(weighted_roc_auc(self.labels, values, once)[0])
        if isinstance(found, Interval):
            return value, (found.low, found.high), ""
        return value, None, f"no interval of the ROC AUC: {found.reason}"

    def largest_class(self, classes: tuple[str, str]) -> tuple[str, float] | None:
        """Return the larger class and its share: the accuracy of always answering it."""
        if not len(self.rows):
            return None
        share = float(self.labels.mean())
        return (classes[1], share) if share > 0.5 else (classes[0], 1 - share)


def _balance(labels: NDArray[np.int8], options: BaselineOptions) -> NDArray[np.int64]:
    if options.balance == "upsample":
        return raise_to_parity(labels, seed=options.seed)
    if options.balance == "equal":
        return choose_equal(labels, seed=options.seed)
    return np.arange(len(labels))


def _mean(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None


# ------------------------------------------------------------ what is shown


def format_table(found: Baselines) -> str:
    """Format the results like the paper's tables: by classifier, the best on validation first.

    Without validation, the order is the paper's: ranking by test results would select a model by
    them.
    """
    lines = []
    for kind, title in _TITLES.items():
        results = [r for r in found.results if r.row.classifier == kind]
        if all(r.val is not None for r in results):
            results.sort(key=lambda r: -(r.val or 0))
        heads = f"{'train':>8}{'val':>8}{'test':>8}{'features':>10}"
        lines += ["", f"{title:<32}{heads}   ROC AUC (95 %)"]
        for r in results:
            name = " + ".join(_NAMES[part] for part in r.row.features)
            shares = "".join(f"{_percent(value):>8}" for value in (r.train, r.val, r.test))
            lines.append(f"{name:<32}{shares}{r.n_features:>10}   {_roc_auc(r)}")
    n = found.n_by_split
    images = pluralize(len(found.entries), "image")
    title = f"{images}, class 0 {found.classes[0]}, class 1 {found.classes[1]}"
    if found.rounds > 1:
        lines.append(f"\n{title}; {found.rounds} rounds, each image tested once")
    else:
        lines.append(f"\n{title}; train {n['train']}, val {n['val']}, test {n['test']}")
    if found.largest:
        name, share = found.largest
        lines.append(f"always answering {name}: {_percent(share)}")
    lines += dict.fromkeys(r.undefined for r in found.results if r.undefined)
    if found.without_shape:
        lines.append(f"without the model of nuclei (shape + LBP + PFTAS): {found.without_shape}")
    return "\n".join(lines).lstrip("\n")


def _percent(share: float | None) -> str:
    return "-" if share is None else format_percent(share, 1).replace(" ", "")


def _roc_auc(result: Result) -> str:
    if result.roc_auc is None:
        return "-"
    if result.roc_auc_ci95 is None:
        return f"{result.roc_auc:.3f}"
    low, high = result.roc_auc_ci95
    return f"{result.roc_auc:.3f} ({low:.3f} to {high:.3f})"


def write_tables(out: Path, found: Baselines) -> list[Path]:
    """Write ``baselines.csv``, one line per model, and ``predictions.csv``, one per image."""
    header = ("classifier", "features", "n_features", "train", "val", "test",
              "roc_auc", "roc_auc_low", "roc_auc_high")  # fmt: skip
    rows = [
        (
            *(r.row.classifier, "+".join(r.row.features), r.n_features, r.train, r.val, r.test),
            *(r.roc_auc, *(r.roc_auc_ci95 or (None, None))),
        )
        for r in found.results
    ]
    names = [f"{r.row.classifier}:{'+'.join(r.row.features)}" for r in found.results]
    predicted = np.stack([r.predicted for r in found.results], axis=1)
    images = [
        (e.image_id, e.patient, e.label, *("" if p < 0 else int(p) for p in answers))
        for e, answers in zip(found.entries, predicted, strict=True)
    ]
    files = [out / "baselines.csv", out / "predictions.csv"]
    write_csv(files[0], header, rows)
    write_csv(files[1], ("image_id", "patient", "label", *names), images)
    return files
