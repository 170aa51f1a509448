"""Reading of a YAML config into frozen, validated dataclasses.

Library functions never see YAML, arguments or environment variables. Relative paths in a config
are relative to the config's folder; those of ``--set`` to the working folder.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, TypeAdapter, ValidationError

from tiling.contracts import StrPath, TileConfig
from tiling.files import digest_json, read_text
from tiling.urls import as_path, is_url, local_path
from wsi_pipeline.config.settings import (
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    HeatmapConfig,
    ImagesConfig,
    PredictConfig,
    ReportConfig,
    Seed,
    TrainConfig,
    with_recipe,
)
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.config.yaml_files import parse_yaml
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.names import check_model_name, check_twins

Value = TypeVar("Value")
Settings = TypeVar("Settings")


def _check_stage(name: str) -> str:
    known = [stage.name for stage in STAGES]
    if name not in known:
        raise ValueError(f"no such stage; known: {', '.join(known)}")
    return name


StageName = Annotated[str, AfterValidator(_check_stage)]


@dataclass(frozen=True)
class SplitConfig:
    """Splits for a data set whose manifest has none: by patient, stratified by label."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic on the class

    val_fraction: float = 0.2  # share of the patients
    test_fraction: float = 0.2  # share of the patients
    # k-fold instead: the fold below is the test, the next one val; patients: each is a fold
    folds: int | Literal["patients"] | None = None
    fold: int = 0  # from 0


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    input: Path | None = None  # slide, folder or manifest
    out: Path | None = None  # run folder
    seed: Seed = 0
    stages: tuple[StageName, ...] = tuple(stage.name for stage in STAGES)
    splits: SplitConfig | None = None  # None: the manifest's own
    images: ImagesConfig | None = None  # input is a folder of images; None: slides
    tile: TileConfig = field(default_factory=TileConfig)
    train: dict[str, TrainConfig] = field(default_factory=dict)  # by the name of the model's folder
    predict: PredictConfig = field(default_factory=PredictConfig)
    heatmap: HeatmapConfig = field(default_factory=HeatmapConfig)
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    cluster: dict[str, Any] = field(
        default_factory=dict
    )  # for --dask slurm: dask-jobqueue's options

    def __post_init__(self) -> None:
        """Take a run folder's URL as one."""
        if self.out is not None:
            object.__setattr__(self, "out", as_path(self.out))


_RECORDED = "run.json, the recorded settings of this run (--config FILE replaces them)"

# Keys of a config whose values are paths.
_PATHS = (
    ("input",),
    ("out",),
    ("images", "table"),
    ("tile", "coords"),
    ("tile", "tissue", "mask"),
    ("train", "*", "model", "weights"),
)


def read_config(
    path: Path | None,
    settings: Sequence[str] = (),
    *,
    section: str | None = None,
    models: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
) -> Config:
    """Read a config file and the ``--set key=value`` that override it.

    Parameters
    ----------
    path : Path, optional
        YAML file; None for the defaults.
    settings : sequence of str
        ``key=value``; the key is dotted (``tile.patch_px``) or, within `section`, short
        (``patch_px``); the value is YAML (``0.5``, ``[val, test]``, ``null``).
    section : str, optional
        The stage whose short keys are meant.
    models : sequence of str, optional
        Models whose training settings are wanted; short keys of ``train`` are theirs. Default:
        those of the config.
    recorded : mapping, optional
        Recorded settings by section, of `wsi_pipeline.run.runner.recall_settings`; used if there
        is no `path`.

    Raises
    ------
    ConfigError
        With the file, the key and what is expected.
    """
    path = None if path is None else local_path(path, "a config")
    _check_model_names(models, "--model")
    values = _read_yaml(path) if path else deepcopy(dict(recorded or {}))
    if path:
        _resolve_paths(values, lambda name: str(path.parent / name))
    elif recorded:
        _validate(values, _RECORDED, Config)  # before `settings` are applied
        _check_model_names(values.get("train"), _RECORDED)
        _resolve_paths(values, _RecordedName)
    source = str(path) if path else "settings"
    trained = values.setdefault("train", {}) or {}
    if not isinstance(trained, dict):
        return _validate(values, source, Config)  # refuses it
    values["train"] = trained | {name: trained.get(name) or {} for name in models}
    for setting in settings:
        _apply(values, setting, section, models)
        if not isinstance(values["train"], dict):
            return _validate(values, source, Config)
    _check_model_names(values["train"], f"{source}: train")
    _refuse_recorded_names(values, section, models)
    _complete_models(values["train"])
    return _validate(values, source, Config)


def _check_model_names(trained: Any, source: str) -> None:
    """Refuse model names that are not valid folder names."""
    found = trained if isinstance(trained, (Mapping, Sequence)) else ()  # validation reports others
    names = [name for name in found if isinstance(name, str)]
    for name in names:
        check_model_name(name, f"{source}: the model")
    check_twins(names, f"{source}: the models")


class _RecordedName(str):
    """File name of a path in a run's record, which keeps no folders."""


def _refuse_recorded_names(
    values: Mapping[str, Any], section: str | None, models: Sequence[str]
) -> None:
    """Raise an error for files of which the run has recorded only the name."""
    for first, *rest in _PATHS:
        chosen: Sequence[str] = models or list(values["train"]) if first == "train" else ("",)
        for middle in chosen if first == section else ():
            keys = [first, *(middle if key == "*" else key for key in rest)]
            for holder in _holders(values, keys[:-1]):
                name = holder.get(keys[-1])
                if isinstance(name, _RecordedName):
                    key = ".".join(keys)
                    raise ConfigError(
                        f"{key} was '{name}' in this run, which does not record folders; use "
                        f"--set {key}=FOLDER/{name} (null: none), or --config FILE"
                    )


def _complete_models(trained: Any) -> None:
    """Fill in the model name from its key in the config, and the values of its recipe."""
    if not isinstance(trained, dict):
        return  # validation reports it
    for key, values in trained.items():
        values = {} if values is None else values
        if isinstance(values, dict) and isinstance(values.get("model", {}), dict):
            trained[key] = with_recipe(values | {"model": {"name": key} | values.get("model", {})})


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix.lower() == ".csv" or path.is_dir():
        raise ConfigError(
            f"{path}: a config is a YAML file; pass a manifest or a folder of slides in addition "
            f"to it: {path} --config CONFIG"
        )
    try:
        values = parse_yaml(read_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # also for text that is not UTF-8
        raise ConfigError(f"{path}: not a YAML file ({error})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys, got a {type(values).__name__}")
    return values


def _resolve_paths(values: dict[str, Any], resolve: Callable[[str], str]) -> None:
    for keys in _PATHS:
        for holder in _holders(values, keys[:-1]):
            value = holder.get(keys[-1])
            if isinstance(value, str):
                holder[keys[-1]] = value if is_url(value) else resolve(value)


def _holders(values: Any, keys: Sequence[str]) -> Iterable[dict[str, Any]]:
    if not isinstance(values, dict):
        return
    if not keys:
        yield values
    elif keys[0] == "*":
        for value in values.values():
            yield from _holders(value, keys[1:])
    else:
        yield from _holders(values.get(keys[0]), keys[1:])


def _apply(
    values: dict[str, Any], setting: str, section: str | None, models: Sequence[str]
) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: use key=value, e.g. tile.patch_px=256")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"--set {setting}: '{text}' is not a YAML value ({error})") from error
    for keys in _full_keys(key, section, models or list(values["train"]), values["train"]):
        _put(values, keys, value)


def _full_keys(
    key: str, section: str | None, chosen: Sequence[str], known: Iterable[str]
) -> list[list[str]]:
    """Expand a short key: itself, or a key of the current section (for each model).

    Parameters
    ----------
    chosen : sequence of str
        Models that a short key of ``train`` is meant for.
    known : iterable of str
        Models of the config, whose names may hold dots.
    """
    first, _, rest = key.partition(".")
    if first == "train" and rest:
        models = [name for name in known if rest.startswith(f"{name}.")]
        if models:
            model = max(models, key=len)
            return [["train", model, *rest[len(model) + 1 :].split(".")]]
    if not section or first in _field_names(Config):
        return [key.split(".")]
    if section == "train":
        return [["train", model, *key.split(".")] for model in chosen]
    return [[section, *key.split(".")]]


def _put(holder: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for name in keys[:-1]:
        if not isinstance(holder.get(name), dict):
            holder[name] = {}
        holder = holder[name]
    holder[keys[-1]] = value


def _field_names(kind: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def train_config(
    model: str,
    *,
    options: Mapping[str, Any] | None = None,
    weights: StrPath | None = None,
    preprocess: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TrainConfig:
    """Make the settings of a training: the model's own recipe, and what is set otherwise.

    Parameters
    ----------
    model : str
        Name of the architecture, as `build_model` takes it.
    options, preprocess : mapping, optional
        Options of that model; what is done to images before it (fields of `PreprocessConfig`).
    weights : str or path, optional
        ImageNet weights to start from, a state dict in torchvision's layout.
    **settings
        Fields of `TrainConfig` (docs/config.md, section train), such as ``lr=1e-3`` or
        ``augment={"flips": False}``.

    Returns
    -------
    config : TrainConfig

    Raises
    ------
    ConfigError
        If there is no such setting, or not with such a value.

    Examples
    --------
    >>> config = train_config("patchnet", max_epochs=2, options={"m": 17})
    >>> config.optimizer, config.max_epochs, config.model.options
    ('adam', 2, {'m': 17})
    """
    given = {"options": options, "weights": weights, "preprocess": preprocess}
    chosen = {"name": model} | {key: value for key, value in given.items() if value is not None}
    return _validate(with_recipe({**settings, "model": chosen}), f"train.{model}", TrainConfig)


def check_section(section: str, settings: Any) -> None:
    """Refuse settings out of their range; those of a config are checked as they are read.

    Raises
    ------
    ConfigError
        Naming the section, the key, its value and what would be right.
    """
    _validate(dataclasses.asdict(settings), section, type(settings))


def _validate(values: Mapping[str, Any], source: str, kind: type[Settings]) -> Settings:
    if kind is Config and (urls := _find_urls(values)):
        raise ConfigError(f"{source}: " + "; ".join(urls))
    try:
        settings = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = [_sentence(problem) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error
    problems = list(_odd_numbers(values, settings))
    if problems:
        raise ConfigError(f"{source}: " + "; ".join(problems))
    return settings


def _find_urls(values: Mapping[str, Any]) -> list[str]:
    """Describe the settings that are URLs and must be on a file system: all but the run folder."""
    return [
        f"{key} must be on a file system, got {as_path(path)}; copy it to a local folder and give "
        "that (docs/storage.md)"
        for keys in _PATHS
        if keys != ("out",)
        for key, path in _values_at(values, keys)
        if isinstance(path, (str, Path)) and is_url(path)
    ]


def _values_at(values: Any, keys: Sequence[str], before: str = "") -> Iterable[tuple[str, Any]]:
    """Find the values of a key with ``*`` for any name; yield each with its own key."""
    if not keys:
        yield before.removesuffix("."), values
    elif isinstance(values, Mapping):
        for name in values if keys[0] == "*" else [keys[0]]:
            yield from _values_at(values.get(name), keys[1:], f"{before}{name}.")


def _odd_numbers(given: Any, settings: Any, key: str = "") -> Iterable[str]:
    """List values that pydantic accepts as numbers but are not: booleans, NaN, infinity."""
    if isinstance(given, bool) and not isinstance(settings, bool):
        yield f"{key}: input should be a number, got {str(given).lower()}"
    elif isinstance(settings, float) and not math.isfinite(settings):
        yield f"{key}: input should be a finite number, got {settings}"
    given_parts = dict(_parts(given))
    for name, part in _parts(settings):
        yield from _odd_numbers(given_parts.get(name), part, f"{key}.{name}" if key else str(name))


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if dataclasses.is_dataclass(value):
        return [(name, getattr(value, name)) for name in _field_names(value)]
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _sentence(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    if problem["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _known_keys(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        where = f" under '{'.'.join(place[:-1])}'" if place[:-1] else ""
        return f"unknown key '{place[-1]}'{where}; {hint}"
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{'.'.join(place)}: {message}, got {problem['input']!r}"


def _known_keys(place: Sequence[str]) -> list[str]:
    kind: Any = Config
    for name in place:
        if not dataclasses.is_dataclass(kind):
            continue  # the name of a model under train: `kind` is already its type
        found = {f.name: f.type for f in dataclasses.fields(kind)}.get(name)
        kinds = [part for part in (found, *get_args(found)) if dataclasses.is_dataclass(part)]
        nested = [inner for part in get_args(found) for inner in get_args(part)]
        kinds += [part for part in nested if dataclasses.is_dataclass(part)]
        kind = kinds[0] if kinds else kind
    return _field_names(kind) if dataclasses.is_dataclass(kind) else []


def as_plain(value: Any) -> Any:
    """Convert settings to plain values for JSON and YAML.

    A path becomes its file name, so that no folder of this machine is written to an output.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    return value.name if isinstance(value, Path) else value


def anchor_paths(value: Value, folder: Path) -> Value:
    """Make every path in a value absolute, for a process with another working folder.

    Parameters
    ----------
    value : any
        Paths are looked for in dataclasses, mappings, lists and tuples.
    folder : Path
        Absolute; relative paths start here.
    """
    found: Any = value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = _field_names(value)
        found = dataclasses.replace(
            value, **{name: anchor_paths(getattr(value, name), folder) for name in names}
        )
    elif isinstance(value, Mapping):
        found = {key: anchor_paths(item, folder) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        found = type(value)(anchor_paths(item, folder) for item in value)
    elif isinstance(value, Path):
        found = value if is_url(value) else folder / value
    return found  # type: ignore[no-any-return]  # of the same type throughout


def name_changes(recorded: Any, section: str) -> list[str]:
    """List the plain settings of a stage that differ from their defaults, as ``key=value``.

    Examples
    --------
    >>> name_changes({"overlap": "max", "thumbnail_px": 1200}, "heatmap")
    ['overlap=max']
    >>> name_changes({"patchnet": {"model": {"name": "patchnet"}, "lr": 0.5}}, "train")
    ['patchnet.lr=0.5']
    """
    default = _recipes(recorded or {}) if section == "train" else getattr(Config(), section, None)
    return list(_changes(recorded or {}, as_plain(default) or {}))


def _recipes(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default settings of each model."""
    values = {key: {"model": {"name": own["model"]["name"]}} for key, own in trained.items()}
    _complete_models(values)
    return dict(_validate({"train": values}, _RECORDED, Config).train)


def _changes(
    recorded: Mapping[str, Any], default: Mapping[str, Any], before: str = ""
) -> Iterable[str]:
    for key, value in recorded.items():
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
            yield from _changes(value, default[key], f"{before}{key}.")
        elif value != default.get(key):
            shown = value if isinstance(value, str) else json.dumps(value)
            yield f"{before}{key}={shown}"


def digest_settings(*parts: Any) -> str:
    """Hash settings and input fingerprints together."""
    return digest_json([as_plain(part) for part in parts])
