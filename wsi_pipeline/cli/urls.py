"""URLs on the command line: the one place where paths of all commands pass."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tiling.urls import as_path, is_url, refuse
from wsi_pipeline.config.stages import STAGES, check_run_folder

# Parameters that may be a URL: the run folder.
RUN_NAMES = {stage.name: "out" if stage.name == "tile" else "run" for stage in STAGES} | {
    "run": "out",
    "apply": "out",
    "collect": "run",
}


def check_urls(command: Callable[..., None], name: str) -> Callable[..., None]:
    """Let a command take URLs where it can, and refuse them elsewhere.

    Parameters
    ----------
    command : function
        As typer calls it; its paths are parameters with `Path` values.
    name : str
        Of the command.
    """
    stages = {stage.name for stage in STAGES}

    @functools.wraps(command)
    def checked(**values: Any) -> None:
        for parameter, value in values.items():
            for path in filter(is_url, _paths(value)):
                if parameter != RUN_NAMES.get(name):
                    refuse(as_path(path), f"{name} takes no URL here, only a path")
                elif name in stages:
                    check_run_folder(name, as_path(path))
        command(**{key: as_path(v) if isinstance(v, Path) else v for key, v in values.items()})

    return checked


def _paths(value: Any) -> Iterator[Path]:
    """Find the paths in a parameter's value, which may be repeated."""
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, Path):
            yield item
