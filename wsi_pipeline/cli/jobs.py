"""The command ``submit``: all stages of a run as jobs of a cluster."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cli.options import SetOption


class ClusterName(StrEnum):
    """Batch systems that have templates."""

    slurm = "slurm"
    pbs = "pbs"
    sge = "sge"


def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")],
    cluster: Annotated[ClusterName, typer.Option("--cluster", help="Batch system.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the scripts. Default: RUN/jobs."),
    ] = None,
    submit_: Annotated[
        bool, typer.Option("--submit", help="Submit the jobs; print their numbers.")
    ] = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint", help="Model to predict with. Default: the run's own. Repeatable."
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="DIR", help="Folder of edited templates."),
    ] = None,
    copy_templates: Annotated[
        Path | None,
        typer.Option(
            "--copy-templates", metavar="DIR", help="Copy the templates, to edit, and stop."
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Write job scripts of all stages of a config, with their dependencies; submit them."""
    from wsi_pipeline.config.reading import read_config
    from wsi_pipeline.jobs import scripts

    if copy_templates is not None:
        print("\n".join(map(str, scripts.copy_templates(copy_templates))))
        return
    settings = read_config(config, set_ or ())
    submission = scripts.Submission(config, settings, tuple(set_ or ()), tuple(checkpoint or ()))
    folder = out or (settings.out or Path()) / "jobs"
    written = scripts.write_scripts(submission, cluster.value, out=folder, templates=template)
    if not submit_:
        print("\n".join(map(str, written)))
        print(f"nothing submitted; submit all with: bash {shlex.quote(str(written[-1]))}")
        return
    print("\n".join(scripts.submit_scripts(written, cluster.value)))
