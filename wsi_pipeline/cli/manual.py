"""Commands that print what can be set: ``init`` and ``settings``."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.main import get_command

from wsi_pipeline.cli.froc import froc


class InitKind(StrEnum):
    """What the settings are for."""

    slides = "slides"
    images = "images"
    froc = "froc"


def init(
    for_: Annotated[
        InitKind,
        typer.Option(
            "--for",
            help="slides, or a folder of single images: a config. froc: a shell script.",
        ),
    ] = InitKind.slides,
) -> None:
    """Print a config with every setting, its default and a comment; redirect it to a file."""
    if for_ is InitKind.froc:
        print(_render_script(froc, _FROC_EXAMPLE), end="")
        return
    from wsi_pipeline.config.manual import render_config

    print(render_config("slides" if for_ is InitKind.slides else "images"), end="")


def settings(
    section: Annotated[
        str | None,
        typer.Argument(
            metavar="[SECTION]", help="E.g. tile, train.augment or evaluate.rates. Default: all."
        ),
    ] = None,
) -> None:
    """Print settings with their defaults, units and meanings."""
    from wsi_pipeline.config.manual import describe, find_settings, list_settings

    print("\n".join(describe(find_settings(section) if section else list_settings())))


_FROC_EXAMPLE = {"--detections": "detections/", "--reference": "reference/", "--out": "froc"}


def _render_script(function: Callable[..., None], given: dict[str, str]) -> str:
    """Write a shell script of one command, its other options as comments with their defaults."""
    program = typer.Typer(add_completion=False)
    program.command()(function)
    command: Any = get_command(program)
    lines = [
        "#!/bin/sh",
        f"# {inspect.getdoc(function)}",
        "# Fill in the folders, move options that you need into the command, and run this file.",
        "",
        f"wsi-pipeline {function.__name__} \\",
        *(f"  {name} {value} \\" for name, value in given.items()),
    ]
    lines[-1] = lines[-1].removesuffix(" \\")
    lines += ["", "# Other options, with their defaults:"]
    for parameter in command.params:
        name = parameter.opts[0]
        if name in given or name == "--help":
            continue
        is_set = parameter.default is not None and parameter.default is not False
        default = f" {_plain(parameter.default)}" if is_set else ""
        about = f": {parameter.help}" if parameter.help else ""
        lines.append(f"#   {name}{default}{about}")
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    return str(getattr(value, "value", value))
