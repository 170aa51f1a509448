"""Every path of every command: a URL is taken or refused, never made a folder called ``s3:``."""

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from typer.models import ArgumentInfo

from tiling.annotation.reading import read_annotation
from tiling.contracts import TileConfig
from tiling.errors import ExpectedError
from tiling.slide import open_slide
from tiling.urls import LocalOnlyError
from wsi_pipeline.cli.app import app, main
from wsi_pipeline.cli.urls import RUN_NAMES
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.config.stages import STAGES

URL = "s3://bucket/thing"
# Of required options that are no paths.
VALUES = {"formats": "qupath", "methods": "saliency", "kind": "slides", "cluster": "slurm"}
LOCAL = {stage.name for stage in STAGES if stage.needs_files}
COMMANDS = {
    command.name or command.callback.__name__: command for command in app.registered_commands
}


def kinds_of(hint: Any) -> set[Any]:
    """List the plain types in an annotation, such as ``Annotated[list[Path] | None, ...]``."""
    if get_origin(hint) is Annotated:
        return kinds_of(get_args(hint)[0])
    if get_origin(hint) in (list, tuple, Union, types.UnionType):
        return {kind for part in get_args(hint) for kind in kinds_of(part)}
    return {hint}


def parameters_of(name: str) -> dict[str, tuple[inspect.Parameter, Any, bool]]:
    """Map a command's parameters to themselves, typer's description, and whether it is a path."""
    function = COMMANDS[name].callback
    hints = get_type_hints(function, include_extras=True)
    return {
        key: (parameter, get_args(hints[key])[1], Path in kinds_of(hints[key]))
        for key, parameter in inspect.signature(function).parameters.items()
    }


def words_of(name: str, chosen: str) -> list[str]:
    """Write a command line with the URL as one parameter, and what else is required."""
    words = [COMMANDS[name].name or COMMANDS[name].callback.__name__.replace("_", "-")]
    for key, (parameter, described, is_path) in parameters_of(name).items():
        if key != chosen and parameter.default is not inspect.Parameter.empty:
            continue
        value = URL if key == chosen else "x" if is_path else VALUES[key]
        if not isinstance(described, ArgumentInfo):
            # typer takes the first name for a default where the default is elsewhere
            names = (described.default, *(described.param_decls or ()))
            words += [next(name for name in names if str(name).startswith("--"))]
        words += [value]
    return words


PATHS = [
    (name, key)
    for name in COMMANDS
    for key, (_, _, is_path) in parameters_of(name).items()
    if is_path
]
REFUSED = [(name, key) for name, key in PATHS if key != RUN_NAMES.get(name) or name in LOCAL]


def test_all_commands_with_paths_are_known():
    assert len(PATHS) > 40
    assert {name for name, _ in PATHS} >= {stage.name for stage in STAGES}


@pytest.mark.parametrize(("name", "key"), REFUSED)
def test_a_url_is_refused_with_the_remedy(name, key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(words_of(name, key)) == 1

    printed = capsys.readouterr().err
    assert printed.startswith(f"LocalOnlyError: {URL}: {name} ")
    assert printed.endswith("copy it to a local folder and give that (docs/storage.md)\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key",
    ["input", "images.table", "tile.coords", "tile.tissue.mask", "train.vgg16.model.weights"],
)
def test_settings_that_are_urls_are_refused(key, tmp_path):
    with pytest.raises(ExpectedError, match=rf"{key} must be on a file system, got {URL}"):
        read_config(None, [f"{key}={URL}"])

    path = tmp_path / "config.yaml"
    *outer, last = key.split(".")
    text = "".join(f"{' ' * depth}{name}:\n" for depth, name in enumerate(outer))
    path.write_text(f"{text}{' ' * len(outer)}{last}: {URL}\n")
    with pytest.raises(ExpectedError, match=rf"{key} must be on a file system, got {URL}"):
        read_config(path)


@pytest.mark.parametrize("column", ["slide", "annotation"])
def test_a_manifest_with_urls_is_refused(column, tmp_path, capsys):
    path = tmp_path / "slides.csv"
    cells = {"slide": "a.svs", "annotation": "", column: URL}
    path.write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")

    assert main(["slides", str(path)]) == 1

    assert f"{URL} is a URL" in capsys.readouterr().err


def test_a_run_folder_of_a_config_is_a_url_or_relative_to_the_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"out: {URL}\n")

    assert str(read_config(path).out) == URL


def test_the_python_interface_refuses_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (open_slide, read_annotation, lambda path: TileConfig(coords=path)):
        with pytest.raises(LocalOnlyError, match=URL):
            call(URL)
    assert not list(tmp_path.iterdir())
