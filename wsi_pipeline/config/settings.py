"""Settings of the stages: frozen dataclasses with defaults, units and sources.

This module imports no heavy package, so the command line can use it without torch. The type of a
field includes its range, which `wsi_pipeline.config.reading` checks. The defaults of `TrainConfig`
are the lecture's recipe for VGG16; `RECIPES` holds the values of the other models' papers, and a
config overrides both.
"""

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.contracts import AtRate, Definition, Split

Optimizer = Literal["rmsprop", "adam", "sgd"]
Monitor = Literal["roc_auc", "loss", "none"]
Sampling = Literal["balanced", "shuffle"]
EvaluatedSplit = Literal["test", "val", "train", "all"]
Compiler = Literal["none", "inductor"]
StainMethod = Literal["macenko", "reinhard"]
Overlap = Literal["mean", "max", "centre"]
Context = Literal["lecture", "camelyon16"]  # published results that a report can show

# Ranges.
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Score = Share  # output of a model, and thresholds for it
Aggregator = Literal["max", "mean", "top_k", "mean_pool_max", "span"]  # patches' scores -> slide's
Forgetting = Annotated[float, Field(ge=0, lt=1)]  # at 1 a running average never changes

DEVICE_NAME = re.compile(r"auto|cpu|mps|cuda(?::(\d+))?")  # what --device takes


@dataclass(frozen=True)
class ImagesConfig:
    """A folder of single images in place of slides: ``input`` is that folder."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    # Folders of class 0 and class 1. None: the two there are, in alphabetical order.
    classes: tuple[str, str] | None = None
    channels: Literal[1, 3] = 3
    size: tuple[Count, Count] | None = None  # (height, width), px; None: as they are, all alike
    # How an image gets that size. pad: zeros around the centre (PatchNet papers: nuclei, 128).
    fit: Literal["resize", "pad", "crop"] = "resize"
    table: Path | None = None  # CSV: file[,class][,patient][,split][,mask]; None: the folder itself
    # Regular expression: what it finds in a file's name (its first group) is the patient.
    patient_pattern: str | None = None
    mpp: Positive | None = None  # µm per px; None: unknown
    # Train on equally many of each class: true leaves out some of the larger one (PatchNet paper
    # 2), upsample repeats the smaller one (PatchNet paper 1).
    equal_classes: bool | Literal["upsample"] = False


@dataclass(frozen=True)
class PreprocessConfig:
    """Preprocessing of every image, in this order but for `stain`; stored in the checkpoint."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    crop: tuple[Count, Count] | None = None  # (height, width) px of the centre; random in training
    gamma: Positive | None = None  # PatchNet paper 2: 2.2
    # encode: x^(1/gamma), as ports of the paper's source have it; decode: x^gamma, linear light
    gamma_mode: Literal["encode", "decode"] = "encode"
    colour_constancy: bool = False  # PatchNet paper 2; shades of grey
    minkowski: Annotated[float, Field(ge=1)] = (
        6.0  # order of the mean that estimates the light (Finlayson, Trezzi 2004)
    )
    minmax: bool = False  # stretch each image to [0, 1] over all channels (PatchNet paper 1)
    # Map the colours of each slide to a reference, before all else (docs/train.md); None: do not
    stain: StainMethod | None = None


def preprocess_settings(config: PreprocessConfig) -> dict[str, Any]:
    """Return preprocessing as checkpoints and fingerprints keep it.

    `stain` is newer than existing checkpoints, so it is left out where it is off.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    if config.stain is None:
        del values["stain"]
    return values


@dataclass(frozen=True)
class ModelConfig:
    """Choice of a model."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic on the class

    name: str  # in the registry of models
    options: dict[str, Any] = field(default_factory=dict)  # of that model, e.g. m, stride
    weights: Path | None = None  # ImageNet state dict in torchvision's layout (.pth, .safetensors)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training patch. Lecture: flips and random colour perturbations."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    flips: bool = True  # horizontal and vertical, each with probability 1/2 (lecture)
    rotate_180: bool = False  # half a turn, with probability 1/2 (PatchNet paper 2)
    zoom: Annotated[float, Field(ge=1)] = (
        1.0  # enlarge by a factor in [1, zoom], keep the centre (PatchNet paper 2: 1.2)
    )
    # The lecture names no sizes; these are ours, applied to every patch.
    brightness: Share = 0.2  # factor in [1 - b, 1 + b]
    contrast: Share = 0.2
    saturation: Share = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # turn of the colour circle, [-h, h]
    # Amounts of haematoxylin, eosin and DAB: factor in [1 - s, 1 + s], shift in [-s, s] of natural
    # optical density (Tellez et al. 2018: 0.05; not in the lecture)
    stain: Share = 0.0


def augment_settings(config: AugmentConfig) -> dict[str, Any]:
    """Return the settings of an augmentation for fingerprints.

    `stain` is newer than existing run folders, so it is left out where it is off.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    if not config.stain:
        del values["stain"]
    return values


@dataclass(frozen=True)
class ProtoPNetConfig:
    """What the training of a ProtoPNet has beyond others (Chen et al. 2019, and their code)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    # First epochs, in which the convolutions and the last layer are frozen (code)
    warm_epochs: Annotated[int, Field(ge=0)] = 5
    lr_add_on: Positive = 3e-3  # learning rate of the add-on layers (code); lr: the convolutions'
    lr_prototypes: Positive = 3e-3  # of the prototypes (code)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3  # of convolutions and add-on layers (code)
    lr_step: Count = 5  # joint epochs after which each learning rate falls (code)
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 0.1  # by which it is multiplied (code)
    cluster: Annotated[float, Field(ge=0)] = 0.8  # factor of the cluster cost (paper)
    separation: Annotated[float, Field(ge=0)] = 0.08  # factor of the separation cost (paper)
    push_from: Count = 10  # epoch of the first push (code)
    push_every: Count = 10  # epochs from one push to the next (code)
    # Patches that are looked at for a push and the last layer, at most, half of each class; None:
    # all labelled ones of the training (paper)
    push_patches: Annotated[int, Field(ge=2)] | None = None
    l1: Annotated[float, Field(ge=0)] = 1e-4  # penalty of weights to the other class (paper)
    tolerance: Positive = 1e-4  # largest violation of the last layer's optimality conditions; ours
    solver_steps: Count = 20_000  # of the last layer's solver, at most; ours
    prune: bool = False  # drop prototypes that are not of their class (an option of the paper)
    prune_nearest: Count = 6  # nearest training patches that are looked at (code)
    prune_least: Count = 3  # of these so many are of the prototype's class, or it goes (code)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Defaults: the lecture's VGG16."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    model: ModelConfig
    optimizer: Optimizer = "rmsprop"  # lecture
    lr: Positive = 5e-5  # lecture: initial learning rate
    rho: Forgetting = 0.9  # RMSprop's forgetting, lecture's rho, torch's alpha
    momentum: Forgetting = 0.9  # lecture's alpha
    eps: Positive = 1e-8  # inside the optimiser's denominator
    # Fine-tuning of initial weights (docs/train.md); none of it in the lecture. Blocks are counted
    # from the input, the head is what follows them.
    freeze: Count | Literal["all"] | None = None  # so many first blocks; all: a linear probe
    head_epochs: Annotated[int, Field(ge=0)] = 0  # first epochs, of the head alone
    head_lr: Positive | None = None  # learning rate of the head; None: lr
    # Block k of n learns at lr * layer_decay^(n - k)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # in which the rates rise linearly to their value
    # Before that, steps in which only the optimiser's running averages change, no weights
    moment_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Count = 32  # patches; not given in the lecture
    # What an epoch is made of. balanced: draws with replacement, first a class, then a slide (of
    # images, a patient), then a patch (lecture); shuffle: one pass over all patches, each once, in
    # random order. None: shuffle for the models of the PatchNet papers, and ProtoPNet, on single
    # images, else balanced.
    sampling: Sampling | None = None
    steps_per_epoch: Count = 1000  # batches of balanced draws; not given in the lecture
    # Share of the balanced draws, within a slide and class, from patches that a review marks wrong
    hard_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_epochs: Count = 100
    lr_halve_after: Count | None = 3  # epochs without lower validation loss (lecture); None: never
    # Lecture: stop by ROC AUC on validation data. "none" needs no validation data: max_epochs are
    # trained, with the learning rate as it is, and the last weights are kept.
    monitor: Monitor = "roc_auc"
    patience: Count = 5  # epochs without a better monitored metric (lecture)
    # PatchNet paper 2: training ends when this share of the training patches is classified
    # correctly (1.0); None: not checked.
    stop_at_train_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    # at most so many, half of each class; None: all labelled
    val_patches: Annotated[int, Field(ge=2)] | None = None
    # Of forward and backward passes; weights stay fp32. auto: bf16 on a GPU that has it, else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: Count = 1  # parts that a batch is computed in, one after the other
    processes: Count = 1  # that share each batch, one per GPU
    readers: Count = 2  # threads of each process that read batches ahead
    # Event files of each epoch's figures, for TensorBoard, in models/<model>/tensorboard/
    log: Literal["none", "tensorboard"] = "none"
    # repeatable: the same bits on one device; strict: nondeterministic operations raise an error
    determinism: Literal["repeatable", "strict"] = "repeatable"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    protopnet: ProtoPNetConfig | None = None  # of the model protopnet; None: another model
    seed: Seed | None = None  # None: that of the whole config


# Settings of fine-tuning, without effect at their defaults.
FINE_TUNING = ("freeze", "head_epochs", "head_lr", "layer_decay", "warmup_steps", "moment_steps")


def fine_tuning_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of fine-tuning that are not at their defaults.

    Examples
    --------
    >>> fine_tuning_settings(TrainConfig(model=ModelConfig("vgg16"), freeze="all"))
    {'freeze': 'all'}
    """
    values = {name: getattr(config, name) for name in FINE_TUNING}
    return {name: value for name, value in values.items() if value != getattr(TrainConfig, name)}


# Values of each model's own source, in the structure of a config.
_PATCHNET: dict[str, Any] = {
    "optimizer": "adam",  # PatchNet paper 2: Adam, 1e-4, batches of 4 images
    "lr": 1e-4,
    "batch_size": 4,
    "lr_halve_after": None,
    "monitor": "loss",  # papers 1 and 2: patience on the validation loss
    "patience": 1000,  # epochs, paper 2
    "max_epochs": 2000,
    "augment": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
}
_PRECISION = _PATCHNET | {
    "lr": 5e-5,  # paper 1, section 4
    "batch_size": 16,  # paper 1: "8 or 16", not which where
    "patience": 2000,  # epochs, paper 1
    "max_epochs": 10_000,  # room for that patience
}
_WHOLE_IMAGE = _PATCHNET | {"batch_size": 64}  # paper 2: CAM and VGG-11 as PatchNet, but for this
# Chen et al. 2019; "code" is its authors' repository (docs/references.md).
_PROTOPNET: dict[str, Any] = {
    "optimizer": "adam",  # code; the paper: stochastic gradient descent
    "lr": 1e-4,  # of the convolutions (code)
    "batch_size": 80,  # code
    "lr_halve_after": None,  # the rates follow protopnet.lr_step
    "patience": 20,  # epochs, judged at each push; ours
    "max_epochs": 30,  # ours: the rates have then fallen by 10^4
    "augment": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},  # none there
    "protopnet": {},
}
RECIPES: dict[str, dict[str, Any]] = {
    "patchnet": _PATCHNET,
    "precision_patchnet": _PRECISION,
    "cam": _WHOLE_IMAGE,
    "vgg11": _WHOLE_IMAGE,
    "protopnet": _PROTOPNET,
}


def result_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a training's result depends on, for fingerprints.

    Settings that do not affect the result have their default. `sampling`, `hard_share`,
    `protopnet`, those of fine-tuning and the precision `auto` are newer than existing run folders,
    so they are left out, or have the value of then, where they equal the earlier behaviour.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    values["readers"] = TrainConfig.readers
    del values["log"]
    values["augment"] = augment_settings(config.augment)
    values["model"] = {f.name: getattr(config.model, f.name) for f in fields(config.model)}
    values["model"]["preprocess"] = preprocess_settings(config.model.preprocess)
    if config.precision == "auto":
        values["precision"] = "fp32"
    del values["steps_per_epoch" if config.sampling == "shuffle" else "sampling"]
    if config.protopnet is None:
        del values["protopnet"]
    if not config.hard_share:
        del values["hard_share"]
    for name in FINE_TUNING:
        if name not in fine_tuning_settings(config):
            del values[name]
    return values


def fill_in_sampling(config: TrainConfig, *, images: bool) -> TrainConfig:
    """Choose the sampling of an epoch if the settings do not.

    PatchNet papers 1 and 2, and ProtoPNet's, count epochs over all training images.

    Examples
    --------
    >>> config = TrainConfig(model=ModelConfig(name="patchnet"))
    >>> [fill_in_sampling(config, images=images).sampling for images in (True, False)]
    ['shuffle', 'balanced']
    """
    if config.sampling is not None:
        return config
    return replace(
        config, sampling="shuffle" if images and config.model.name in RECIPES else "balanced"
    )


def with_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Merge a config's training settings into the recipe of its model; the config overrides.

    Examples
    --------
    >>> with_recipe({"model": {"name": "patchnet"}, "lr": 1e-3})["lr"]
    0.001
    >>> with_recipe({"model": {"name": "patchnet"}})["optimizer"]
    'adam'
    """
    model = values.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    recipe = RECIPES.get(str(name), {})
    merged = {**recipe, **values}
    if isinstance(values.get("augment"), dict):
        merged["augment"] = {**recipe.get("augment", {}), **values["augment"]}
    return merged


@dataclass(frozen=True)
class PredictConfig:
    """How patches are scored."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    batch_size: Count | None = None  # patches; None: by the device and the patch size
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: fp32 on the CPU
    # Largest difference from the fp32 scores, on the first patches of a slide, without a warning.
    tolerance: Annotated[float, Field(ge=0)] = 0.02
    compiler: Compiler = "none"  # inductor: torch.compile
    readers: Count | None = None  # threads that read ahead; None: the cores of this worker
    splits: tuple[Split, ...] | None = None  # None: all slides; slides without a split always
    calibrated: bool = False  # scores are sigmoid(logit / temperature of the checkpoint)
    # Of files of other programs: the network of a state dict; classes that add up to the score
    architecture: str | None = None
    positive: tuple[str, ...] = ()


def score_settings(config: PredictConfig) -> tuple[object, ...]:
    """Return the settings that a slide's scores depend on: batches and threads change none."""
    how = (config.precision, config.compiler, config.tolerance)
    return (*how, "calibrated") if config.calibrated else how


@dataclass(frozen=True)
class HeatmapConfig:
    """How scores become a heatmap."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    overlap: Overlap = "mean"  # where patches overlap; centre: weighted by nearness to a centre
    thumbnail_px: Count = 1200  # longer side of the overlay's thumbnail
    # Slides: step of the map by `method`, px at target_mpp; None: 16, VGG's stride before its last
    # pooling. Set without `method`: as with `own`
    dense_step_px: Count | None = None
    # Image folders: number of images of each class that get maps; None: all.
    maps_per_class: Annotated[int, Field(ge=0)] | None = 4
    # Explanation method (docs/explain.md) of the maps; own: the first that explains the model, of
    # PatchNet, CAM and ProtoPNet their own maps. None: of images own; of slides no map but that of
    # the scores
    method: str | None = None
    layer: str | None = None  # of methods that look at one; None: their own default
    filters: tuple[Annotated[int, Field(ge=0)], ...] = ()  # of PatchNet: map these of slides too


OWN_METHOD = "own"  # stands for the first explanation method that explains a model


def slide_map_method(config: HeatmapConfig) -> str | None:
    """Return the method of slides' maps by the model itself; None: they have none."""
    return config.method or (OWN_METHOD if config.dense_step_px is not None else None)


def slide_heatmap_settings(config: HeatmapConfig) -> dict[str, Any]:
    """Give the settings of a slide's heatmap for fingerprints.

    Those that came later than run folders that exist are left out at their defaults.
    """
    found = {f.name: getattr(config, f.name) for f in fields(config)}
    return {k: v for k, v in found.items() if v or k not in ("method", "layer", "filters")}


@dataclass(frozen=True)
class ExplainConfig:
    """Which patches or images are explained, and how."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    methods: tuple[str, ...] = ()  # used by `run`; the command explain names its own
    top: Annotated[int, Field(ge=0)] = 4  # highest scores that are no errors
    errors: Annotated[int, Field(ge=0)] = 4  # errors furthest from their label
    # In place of these so many that have a mask, drawn at random, and a table of how maps lie on it
    masked: Annotated[int, Field(ge=0)] = 0
    curve_steps: Annotated[int, Field(ge=0)] = 0  # of deletion and insertion curves; 0: none
    layer: str | None = None  # of methods that look at one; None: their own default
    target: Literal[0, 1] | None = None  # class that is explained; None: 1, or the method's own
    seed: Seed = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """How scores are compared with the reference."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    # Split that is evaluated; in an image folder, its images get maps. None: test; all if there are
    # no splits; for images, val if test is empty.
    split: EvaluatedSplit | None = None
    threshold: Score = 0.75  # a patch is positive iff F(I) >= threshold (lecture)
    image_threshold: Score | None = None  # of an image folder; None: the model's own rule, 0.5
    aggregator: Aggregator = "max"  # lecture: max
    top_k: Count = 10  # patches, for the aggregator top_k
    slide_threshold: Score | None = None  # None: chosen on val
    froc_definition: Definition = "camelyon16"  # the one in froc.json
    rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # FPs per slide (CAMELYON16)
    at_rate: AtRate = "linear"
    reference_downsample: Positive = 32.0  # of the lesion image (CAMELYON16: level 5)
    detection_threshold: Score = 0.5  # heatmap values above it are detections (CAMELYON16)
    detection_radius_um: Positive = 75.0  # a detection clears this far; lesions nearer are one
    bootstrap: Annotated[int, Field(ge=0)] = (
        1000  # resampled sets of patients for each interval; 0: no intervals
    )
    stratified: bool = False  # resample patients with and without tumour separately
    seed: Seed = 0
    reviews: bool = False  # labels and lesions as corrected by the marks in RUN/review/


def evaluation_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Return the settings of an evaluation for fingerprints.

    `split` and `reviews` are newer than existing run folders, so each is left out where it is not
    set.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    if config.split is None:
        del values["split"]
    if not config.reviews:
        del values["reviews"]
    return values


@dataclass(frozen=True)
class ReportConfig:
    """What the report shows in addition to the run's own results."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    # Published results, for comparison. lecture: confusion matrix of its VGG16, prostate;
    # camelyon16: results on its test set, and this run's by size of the metastasis, lymph nodes
    context: tuple[Context, ...] = ()
    # Slides or images shown with their picture, of each model: the worst ones. Each takes some
    # 0.1 MB; the other slides are listed with a link to theirs.
    slide_pictures: Annotated[int, Field(ge=0)] = 50


@dataclass(frozen=True)
class ExportConfig:
    """How scores and heatmaps are written for other tools."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    formats: tuple[str, ...] = ()  # that `run` writes; the command export names its own
    splits: tuple[Split, ...] | None = None  # None: all scored slides
    # QuPath: origin of its coordinates, the slide's corner or that of openslide.bounds
    origin: Literal["level0", "bounds"] = "level0"
    qupath: Literal["tiles", "regions", "both"] = "tiles"
    thresholds: tuple[Score, ...] = (0.5, 0.75, 0.9)  # of QuPath's regions: score >= threshold
    compression: Literal["none", "gzip"] = "none"  # of GeoJSON
    class_name: str = "tumour"  # WSInfer's prob_<class>; class of QuPath's regions
    # None: as in the run's heatmaps (for detections: as in its evaluation)
    overlap: Overlap | None = None
    detection_threshold: Score | None = None  # None: as in the run's evaluation
    detection_radius_um: Positive | None = None  # None: as in the run's evaluation


def _seconds_as_time(value: Any) -> Any:
    """Write seconds as HH:MM:SS: YAML reads 02:00:00 without quotes as a number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        minutes, seconds = divmod(value, 60)
        return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
    return value


Memory = Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")]
Walltime = Annotated[
    str, BeforeValidator(_seconds_as_time), Field(pattern=r"^\d{1,4}:[0-5]\d:[0-5]\d$")
]
Word = Annotated[str, Field(pattern=r"^[^\s'\"`\\$]+$")]  # part of a scheduler's directive
Line = Annotated[str, Field(pattern=r"^[^\r\n]+$")]


@dataclass(frozen=True)
class JobConfig:
    """Resources of a job in a batch system; None: the default of its stage."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    cores: Count | None = None
    memory: Memory | None = None  # of the job; GB: 10^9 bytes, GiB: 2^30
    walltime: Walltime | None = None  # HH:MM:SS
    queue: Word | None = None  # Slurm: partition
    gpus: Annotated[int, Field(ge=0)] | None = None  # of the stages that use one
    gpu_type: Word | None = None  # Slurm: --gres=gpu:TYPE:N
    tasks: Count | None = None  # of the array of a stage of slides, at most one per slide
    at_once: Count | None = None  # tasks of an array that run at the same time; None: any number
    options: tuple[Line, ...] | None = None  # of the scheduler, e.g. --qos=long


def _check_job(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Refuse resources of a stage that are none."""
    known = (*(stage.name for stage in STAGES), "collect")
    for stage, own in values.items():
        if stage not in known:
            raise ValueError(f"no stage '{stage}'; known: {', '.join(known)}")
        try:
            TypeAdapter(JobConfig).validate_python(own)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, (stage, *first["loc"])))
            raise ValueError(f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error
    return values


@dataclass(frozen=True)
class ClusterConfig(JobConfig):
    """Jobs of ``submit``, and workers of ``--dask slurm``."""

    gpu_queue: Word | None = None  # of jobs with GPUs; None: as the others
    account: Word | None = None
    setup: tuple[str, ...] = ()  # shell lines before each command: modules, activation
    container: Path | None = None  # Apptainer image; None: none
    binds: tuple[Line, ...] = ()  # folders that the container sees
    failed_slides: Literal["continue", "stop"] = "continue"  # jobs after a stage with exit code 3
    grace_s: Count = 60  # before the time limit, to end in order
    requeue: Annotated[int, Field(ge=0)] = 3  # times that a job continues after its time limit
    stages: Annotated[dict[str, dict[str, Any]], AfterValidator(_check_job)] = field(
        default_factory=dict
    )  # resources of single stages
    processes: Count | None = None  # of Dask in a job
    dask: dict[str, Any] = field(default_factory=dict)  # further options of dask-jobqueue

    def of_dask(self) -> dict[str, Any]:
        """Return the options of dask-jobqueue that are set."""
        names = ("cores", "memory", "walltime", "queue", "processes", "account")
        own = {name: getattr(self, name) for name in names}
        own["job_script_prologue"] = list(self.setup) or None
        own["job_extra_directives"] = list(self.options or ()) or None
        return {key: value for key, value in own.items() if value is not None} | self.dask
