"""The ``example`` command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ExampleKind(StrEnum):
    """What to draw."""

    slides = "slides"
    teams = "teams"
    images = "images"


def example(
    kind: Annotated[
        ExampleKind,
        typer.Argument(
            help="slides with ASAP XML, detections of teams with a reference, or single images."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="The same seed gives the same files.")
    ] = 0,
) -> None:
    """Draw small example data to try the commands of the tutorials on."""
    from tiling.threads import count_cores
    from wsi_pipeline.demo.example import write_example

    lines = write_example(kind.value, out, seed=seed, workers=count_cores())
    print("\n".join(f"{out}/{line}" for line in lines))
