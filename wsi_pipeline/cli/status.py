"""The command ``status``."""

import json
from typing import Annotated

import typer

from wsi_pipeline.cli.options import RunArgument


def status(
    run: RunArgument,
    json_: Annotated[
        bool, typer.Option("--json", help="Print JSON, whose schema is in docs/status.md.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="List all processes and names, not the first ones.")
    ] = False,
) -> None:
    """Show what is done, failed, missing and running where, and when it ends. Writes nothing."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages.status import find_status
    from wsi_pipeline.stages.status_text import as_plain, describe

    found = find_status(RunFolder(run))
    if json_:
        print(json.dumps(as_plain(found), indent=2, allow_nan=False))
    else:
        print("\n".join(describe(found, every=every)))
