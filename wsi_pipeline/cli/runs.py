"""Commands of whole runs: ``run``, ``apply``, ``demo``, ``collect`` and ``compare``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from wsi_pipeline.cli.options import (
    EXIT_NOTHING_DONE,
    ArchitectureOption,
    ConfigOption,
    FileOption,
    ModelOption,
    PositiveOption,
    QuietOption,
    RunArgument,
    RunInputArgument,
    SetOption,
    check_each,
    describe_model,
    finish,
    read_run_config,
    read_settings,
    with_options,
)
from wsi_pipeline.exports import check_format

if TYPE_CHECKING:
    from wsi_pipeline.config.reading import Config
    from wsi_pipeline.run.runner import Options


@with_options()
def run(
    options: "Options",
    given: RunInputArgument = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder, overrides the config's."),
    ] = None,
    config: FileOption = None,
    set_: SetOption = None,
) -> None:
    """Run all stages listed in a config, in order; finished outputs are kept."""
    _run(read_run_config(given, config, set_, out), options)


def _run(settings: "Config", options: "Options") -> NoReturn:
    from wsi_pipeline.errors import ConfigError
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages.whole_run import run_stages

    if settings.out is None:
        raise ConfigError("no run folder; set out in the config, or use --out RUN")
    folder = RunFolder(settings.out)
    results = run_stages(folder, settings, options)
    reported = any(result.stage == "report" and not result.failed for result in results)
    last_line = str(folder.report) if reported else ""
    finish(results, settings.out, last_line, quiet=options.quiet)


@with_options()
def apply(
    slides: Annotated[Path, typer.Argument(metavar="SLIDES", help="Slide, folder or manifest.")],
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            "--checkpoint",
            help="Model, as of predict: a checkpoint, WSInfer's form, or a state dict. Repeatable.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder.")],
    options: "Options",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="F",
            callback=lambda names: check_each(check_format)(names or []),
            help="Export, as of the command export; repeatable. Default: qupath.",
        ),
    ] = None,
    architecture: ArchitectureOption = None,
    positive: PositiveOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Apply a model to slides: scores, heatmaps and files for QuPath, in one command."""
    from wsi_pipeline.cli.stages import next_of_shard
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages.whole_run import apply_models

    set_ = [*(set_ or ()), *describe_model(architecture, positive)]
    settings = read_settings(out, config, set_, section="predict", quiet=options.quiet)
    formats = list(dict.fromkeys(formats or ["qupath"]))
    results = apply_models(
        RunFolder(out),
        replace(settings, out=out),
        options,
        slides=slides,
        checkpoints=checkpoint,
        formats=formats,
    )
    places = {"heatmaps": out / "heatmaps"} | {name: out / "exports" / name for name in formats}
    written = ", ".join(f"{name}: {place}" for name, place in places.items() if place.is_dir())
    next_line = next_of_shard("", out, options)
    done = results[-1].exit_code != EXIT_NOTHING_DONE
    finish(results, out, written if done else "", next_line=next_line, quiet=options.quiet)


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")] = Path(
        "demo"
    ),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Tiny slides and training, in a minute; the metrics mean nothing."
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Draw a small cohort with known tumours and run every stage on it, up to the report."""
    from wsi_pipeline.config.extras import require
    from wsi_pipeline.config.reading import read_config
    from wsi_pipeline.demo.cohort import prepare_demo
    from wsi_pipeline.run.runner import Options

    require("torch")
    if quick:
        print("quick demo: the model is barely trained, so the metrics mean nothing")
    settings = read_config(prepare_demo(out, quick=quick))
    _run(settings, Options(quiet=quiet))


def collect(
    run: RunArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read all pixels and verify their checksums.")
    ] = False,
) -> None:
    """Merge the failures of a job array and list the slides missing from each stage."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages import collect as collect_stage

    summary = collect_stage.collect(RunFolder(run), verify=verify)
    print("\n".join(summary.lines))
    raise typer.Exit(3 if summary.missing or summary.failed else 0)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Evaluated run folders.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")],
    model: ModelOption = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=1, help="Bootstrap resamples for paired differences.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Compare several models or runs in one HTML report."""
    from wsi_pipeline.report.comparison import build_comparison

    print(build_comparison(runs, out, models=model or (), replicates=bootstrap, seed=seed))
