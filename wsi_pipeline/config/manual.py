"""The manual of the settings: what each means, as a table, and as a config to edit.

Keys, defaults and their order are those of the dataclasses of `wsi_pipeline.config`; units and
meanings are in ``manual.yaml``. The tables of docs/config.md are made from both
(``python docs/make_config_tables.py``).
"""

import dataclasses
import difflib
import functools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args, get_type_hints

import yaml

from wsi_pipeline.config.reading import Config, as_plain
from wsi_pipeline.config.settings import with_recipe
from wsi_pipeline.config.yaml_files import parse_yaml
from wsi_pipeline.errors import ConfigError

REQUIRED = "required"  # in place of a default
MODEL = "<model>"  # in keys of `train`: the name of the model's folder
WIDTH = 96  # characters of a line of text

Kind = Literal["slides", "images"]
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#]*)[^)]*\)")


@dataclass(frozen=True)
class Setting:
    """One key of a config."""

    key: str  # dotted
    default: Any  # as YAML has it
    unit: str  # empty: none
    meaning: str  # Markdown, one line

    @property
    def default_text(self) -> str:
        """The default as YAML, in one line."""
        return format_value(self.default)

    @property
    def plain_meaning(self) -> str:
        """The meaning without Markdown."""
        return _LINK.sub(_name_page, self.meaning).replace("`", "").replace("\\|", "|")


def _name_page(link: re.Match[str]) -> str:
    words, page = link.groups()
    return words if not page or page == words else f"{words} (docs/{page})"


def format_value(value: Any) -> str:
    """Format a setting's value as YAML, in one line.

    Examples
    --------
    >>> format_value(5e-5), format_value(["val", "test"]), format_value(None)
    ('0.00005', '[val, test]', 'null')
    """
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:.12f}".rstrip("0")  # YAML 1.1 reads 5e-05 as text
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n...\n").rstrip("\n")


# ------------------------------------------------------------ the list


@functools.cache
def list_settings() -> tuple[Setting, ...]:
    """List every setting, in the order of the config."""
    manual = _read_manual()
    return tuple(
        Setting(key, default, *manual.get(key, ("", "")))
        for key, default in settings_of(Config).items()
    )


def find_settings(section: str) -> list[Setting]:
    """List the settings of a section, such as ``tile`` or ``augment``, or one setting.

    Raises
    ------
    ConfigError
        If there is none.
    """
    wanted = section.rstrip(".")
    # `train.augment` and `train.vgg16.augment` are that of any model.
    spellings = [wanted, re.sub(r"^train\.(?!<model>)", f"train.{MODEL}.", wanted)]
    spellings.append(re.sub(r"^train\.[^.]+", f"train.{MODEL}", wanted))
    for prefix in spellings:
        if found := [s for s in list_settings() if f"{s.key}.".startswith(f"{prefix}.")]:
            return found
    if found := [s for s in list_settings() if f".{wanted}." in f".{s.key}."]:
        return found
    known = {s.key.split(".")[0] for s in list_settings()} | {s.key for s in list_settings()}
    close = difflib.get_close_matches(wanted, sorted(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    sections = ", ".join(dict.fromkeys(s.key.split(".")[0] for s in list_settings()))
    raise ConfigError(f"no setting or section '{section}'{hint} (sections: {sections})")


def _read_manual() -> dict[str, tuple[str, str]]:
    text = (files(__package__) / "manual.yaml").read_text(encoding="utf-8")
    return {
        key: (entry.get("unit", ""), entry.get("meaning", ""))
        for key, entry in parse_yaml(text).items()
    }


def settings_of(kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """List every key of a dataclass of settings with its default, sections resolved."""
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        part, default = _part_of(hints[field.name]), _default_of(field)
        is_section = part is not None and (
            default == REQUIRED or (isinstance(default, dict) and default)
        )
        if not is_section:
            found[prefix + field.name] = default
        if part is not None:
            inner = f"{field.name}.{MODEL}." if field.name == "train" else f"{field.name}."
            found |= settings_of(part, prefix + inner)
    return found


def _default_of(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return as_plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return as_plain(field.default_factory())
    return REQUIRED


def _part_of(hint: Any) -> type[Any] | None:
    """Find the dataclass in a type: itself, in ``X | None``, or the values of a dict."""
    parts = [hint, *get_args(hint)]
    return next((p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)), None)


# ------------------------------------------------------------ as a table


def markdown_row(setting: Setting) -> str:
    """Format a setting as a row of the tables of docs/config.md."""
    cells = (f"`{setting.key}`", f"`{setting.default_text}`", setting.unit, setting.meaning)
    return re.sub(r" +", " ", f"| {' | '.join(cells)} |")


def describe(settings: Iterable[Setting]) -> list[str]:
    """Describe settings for a terminal: key, default and unit, the meaning below."""
    lines = []
    for setting in settings:
        unit = f" ({setting.unit})" if setting.unit else ""
        lines.append(f"{setting.key}: {setting.default_text}{unit}")
        lines += textwrap.wrap(
            setting.plain_meaning, WIDTH, initial_indent="    ", subsequent_indent="    "
        )
    return lines


# ------------------------------------------------------------ as a config to edit

_HEAD = """\
Settings of wsi-pipeline. Except for input, out and the choice of the model, every value is the
default (of the model's recipe): delete what you do not change. Paths are relative to the folder
of this file. Run it with: wsi-pipeline run FILE
"""
# What has no effect on one kind of input, and what its config begins with.
_LEFT_OUT: dict[Kind, tuple[str, ...]] = {"slides": ("images",), "images": ("tile", "export")}
_MODELS: dict[Kind, str] = {"slides": "vgg16", "images": "patchnet"}
_INPUTS: dict[Kind, str] = {"slides": "manifest.csv", "images": "images"}
# Sections that are off: their keys are shown as comments below the value null.
_OFF = ("splits", f"train.{MODEL}.protopnet")
_IMAGE_STAGES = ["tile", "train", "predict", "heatmap", "evaluate", "report"]


def render_config(kind: Kind) -> str:
    """Write a config with every setting that applies, its default, and a comment.

    Parameters
    ----------
    kind : {"slides", "images"}
        What the input is: slides, or a folder of single images.

    Returns
    -------
    text : str
        YAML; read back, it is the default config with a model of `kind`.
    """
    model = _MODELS[kind]
    recipe = with_recipe({"model": {"name": model}})
    chosen = {
        "input": _INPUTS[kind],
        "out": "run",
        f"train.{MODEL}.model.name": model,
        **{f"train.{MODEL}.{key}": value for key, value in _flatten(recipe).items()},
    }
    if kind == "images":
        chosen["stages"] = _IMAGE_STAGES
    lines = [f"# {line}" for line in _HEAD.splitlines()]
    opened: tuple[str, ...] = ()
    for setting in list_settings():
        top = setting.key.split(".")[0]
        if top in _LEFT_OUT[kind] or setting.key in ("images", "train"):
            continue  # without effect, or a section that is written out
        *path, name = setting.key.replace(MODEL, model).split(".")
        is_off = any(setting.key.startswith(f"{key}.") for key in _OFF)
        lines += _open(opened, tuple(path), is_off)
        opened = tuple(path)
        value = format_value(chosen.get(setting.key, setting.default))
        lines += _entry(setting, f"{name}: {value}", 2 * len(path), is_off=is_off)
    return "\n".join(lines) + "\n"


def _open(opened: tuple[str, ...], path: tuple[str, ...], is_off: bool) -> Iterator[str]:
    """Write the names of the sections that begin here."""
    common = 0
    while common < min(len(opened), len(path)) and opened[common] == path[common]:
        common += 1
    if not path or not common:
        yield ""
    for depth in range(common, len(path)):
        mark = "# " if is_off and depth == len(path) - 1 else ""
        yield f"{'  ' * depth}{mark}{path[depth]}:"


def _entry(setting: Setting, text: str, indent: int, *, is_off: bool) -> list[str]:
    """Write a key with its comment above it; one that is off as a comment, too."""
    margin = " " * indent
    unit = f" [{setting.unit}]" if setting.unit else ""
    comment = textwrap.wrap(
        f"{setting.plain_meaning}{unit}".strip(),
        WIDTH,
        initial_indent=f"{margin}# ",
        subsequent_indent=f"{margin}# ",
    )
    if is_off:
        margin = " " * (indent - 2) + "#   "
        comment = [line.replace(" " * indent + "# ", margin + "# ", 1) for line in comment]
    return [*comment, f"{margin}{text}"]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
