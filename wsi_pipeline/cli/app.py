"""The program: its commands, in the order of its help, and how errors end it.

Heavy packages (torch, dask, zarr) are imported by the command that needs them, so that ``--help``
is fast.
"""

import io
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tiling.errors import ExpectedError
from wsi_pipeline import __version__
from wsi_pipeline.cli import stages
from wsi_pipeline.cli.baselines import baselines
from wsi_pipeline.cli.docs import docs
from wsi_pipeline.cli.doctor import doctor
from wsi_pipeline.cli.example_data import example
from wsi_pipeline.cli.examples import epilog_of
from wsi_pipeline.cli.froc import froc
from wsi_pipeline.cli.interrupt import describe_interrupt
from wsi_pipeline.cli.jobs import submit
from wsi_pipeline.cli.manual import init, settings
from wsi_pipeline.cli.options import EXIT_NOTHING_DONE
from wsi_pipeline.cli.planning import plan, slides
from wsi_pipeline.cli.pn_stage import stage as stage_patients
from wsi_pipeline.cli.runs import apply, collect, compare, demo, run
from wsi_pipeline.cli.status import status
from wsi_pipeline.cli.urls import check_urls
from wsi_pipeline.cli.view import view
from wsi_pipeline.config.extras import explain_missing
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.errors import SchedulerLostError
from wsi_pipeline.run.full_disk import describe_full, is_full
from wsi_pipeline.run.interrupts import EXIT_INTERRUPTED, end_now, watch_signals


class _CurrentStderr:
    """Standard error as it is now: a moving progress bar replaces it, and prints lines above."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class Program(TyperGroup):
    """All commands. Errors are turned into a message and an exit code here, and only here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, and keep it for the message of an interrupt."""
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command and convert its errors."""
        try:
            return super().invoke(ctx)
        except ExpectedError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            code = error.exit_code if isinstance(error, SchedulerLostError) else EXIT_NOTHING_DONE
            raise typer.Exit(code) from error
        except ModuleNotFoundError as error:
            if (message := explain_missing(error, ctx.invoked_subcommand)) is None:
                raise
            print(message, file=sys.stderr)
            raise typer.Exit(EXIT_NOTHING_DONE) from error
        except OSError as error:
            if is_full(error):
                print(
                    describe_full(Path(error.filename).parent if error.filename else None),
                    file=sys.stderr,
                )
                raise typer.Exit(EXIT_NOTHING_DONE) from error
            where = f"{error.filename}: " if error.filename else ""
            print(f"{where}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(EXIT_NOTHING_DONE) from error
        except KeyboardInterrupt as error:
            message = describe_interrupt(ctx.invoked_subcommand, ctx.meta["words"])
            print(message, file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from error


app = typer.Typer(
    cls=Program,
    name="wsi-pipeline",
    help="Whole-slide images in, heatmaps and a FROC report out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# Stages whose commands have options of their own.
WITH_OPTIONS: dict[str, Callable[..., None]] = {
    "tile": stages.tile,
    "train": stages.train,
    "predict": stages.predict,
    "evaluate": stages.evaluate,
    "explain": stages.explain,
    "report": stages.report,
    "export": stages.export,
}
BEFORE_A_RUN: tuple[Callable[..., None], ...] = (init, settings, slides, plan)
FURTHER: tuple[Callable[..., None], ...] = (
    *(run, apply, submit, status, demo, example, froc, stage_patients),
    *(compare, view, baselines, collect, doctor, docs),
)

for command in BEFORE_A_RUN:
    app.command(epilog=epilog_of(command.__name__))(check_urls(command, command.__name__))
for stage in STAGES:
    app.command(stage.name, help=stage.summary, epilog=epilog_of(stage.name))(
        check_urls(WITH_OPTIONS.get(stage.name) or stages.make_command(stage.name), stage.name)
    )
for command in FURTHER:
    app.command(epilog=epilog_of(command.__name__))(check_urls(command, command.__name__))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"wsi-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=_CurrentStderr())
    logging.getLogger("tifffile").propagate = False  # its doubts are reported with the slide's name
    stop_watching = watch_signals()
    for stream in (sys.stdout, sys.stderr):  # names that the terminal cannot show are escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=list(argv) if argv is not None else None, prog_name="wsi-pipeline")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_NOTHING_DONE
    finally:
        stop_watching()
    return 0


def entry() -> NoReturn:
    """Run the program as the console script does."""
    code = main()
    if code == EXIT_INTERRUPTED:
        end_now()
    sys.exit(code)
