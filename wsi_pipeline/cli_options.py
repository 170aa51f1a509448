"""Options that several commands share, each written down once."""

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings, a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, over the config; repeatable."),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Slides at a time.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Part I of N (from 0), or auto in a job array."),
]
DaskOption = Annotated[
    str | None,
    typer.Option("--dask", metavar="ADDRESS", help="Scheduler's address, local or slurm."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Do again what is finished already.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Only errors and the last line.")]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="Model name; repeatable. Default: all.")
]
