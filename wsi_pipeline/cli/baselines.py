"""The ``baselines`` command."""

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tiling.wording import pluralize
from wsi_pipeline.cli.options import FileOption, QuietOption, SetOption, WorkersOption, refuse_idle


class BaselineSplit(StrEnum):
    """How images are divided into training and test."""

    given = "given"
    shares = "shares"
    folds = "folds"
    groups = "groups"


class BaselineBalance(StrEnum):
    """Treatment of classes of unequal size in training."""

    none = "none"
    upsample = "upsample"
    equal = "equal"


def baselines(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of images. Default: the config's input.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Output folder: tables as CSV, and features of each image, from which an "
            "interrupted command continues.",
        ),
    ] = None,
    split: Annotated[
        BaselineSplit | None,
        typer.Option(
            "--split",
            help="given: by folders or table; shares: at random, by patient; folds: k-fold; "
            "groups: leave one patient out. Default: given if there are any, else shares.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds", min=2, help="For --split folds. Default: the config's splits.folds, else 5."
        ),
    ] = None,
    balance: Annotated[
        BaselineBalance,
        typer.Option(
            "--balance", help="upsample: repeat the smaller class; equal: thin the other."
        ),
    ] = BaselineBalance.none,
    nonzero_is_object: Annotated[
        bool,
        typer.Option(
            "--nonzero-is-object", help="Shape features of pixels above 0 (zero-padded nuclei)."
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Default: the config's, else 0.")
    ] = None,
    config: FileOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fit linear models on classic texture features and print the table of the PatchNet papers."""
    from wsi_pipeline.baselines.comparison import (
        BaselineOptions,
        format_table,
        run_baselines,
        write_tables,
    )
    from wsi_pipeline.config.reading import SplitConfig, read_config
    from wsi_pipeline.config.settings import ImagesConfig
    from wsi_pipeline.run.process_pool import choose_workers
    from wsi_pipeline.run.progress import StageProgress

    if split is not BaselineSplit.folds:
        refuse_idle("without --split folds", {"--folds": folds})
    settings = read_config(config, set_ or (), section="images")
    folder = folder or settings.input
    if folder is None:
        raise typer.BadParameter("give a FOLDER of images, or --config FILE with an input")
    shares = settings.splits or SplitConfig()
    options = BaselineOptions(
        scheme=split.value if split else None,
        splits=replace(shares, folds=folds) if folds else shares,
        balance=balance.value,
        nonzero_is_object=nonzero_is_object,
        seed=settings.seed if seed is None else seed,
    )
    with StageProgress("features", 1, noun="folder", quiet=quiet) as progress:
        progress.begin(folder.name, "image")
        found = run_baselines(
            folder,
            settings.images or ImagesConfig(),
            options,
            keep=out / "features" if out else None,
            workers=choose_workers(workers, takes_all_cores=False),
            on_progress=progress.inside,
        )
        kept = f", features of {found.n_kept} kept from before" if found.n_kept else ""
        progress.end(folder.name, pluralize(len(found.entries), "image") + kept)
    print(format_table(found))
    for problem in found.problems.values():
        print(f"left out: {problem}", file=sys.stderr)
    if out:
        print(" ".join(map(str, write_tables(out, found))))
    raise typer.Exit(3 if found.problems else 0)
