"""The ``export`` command."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cli.options import (
    ConfigOption,
    DaskOption,
    DeviceOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    RunArgument,
    SetOption,
    ShardOption,
    WorkersOption,
    finish,
    make_options,
    read_settings,
)
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.exports import FORMATS, check_format


def _check_formats(names: list[str]) -> list[str]:
    try:
        for name in names:
            check_format(name)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    return names


def export(
    run: RunArgument,
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            metavar="F",
            callback=_check_formats,
            help="Repeatable. "
            + "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
            + ".",
        ),
    ],
    model: ModelOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Output folder; several formats get one subfolder each. Default: "
            "RUN/exports/F/<model>.",
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages.export import export_formats

    options = make_options(workers, device, shard, dask, overwrite, quiet)
    settings = read_settings(run, config, set_, section="export", quiet=quiet)
    results = export_formats(
        RunFolder(run), settings, options, names=formats, models=model or (), out=out
    )
    finish(results, run, quiet=quiet)
