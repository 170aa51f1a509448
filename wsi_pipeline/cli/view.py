"""The ``view`` command."""

import contextlib
import os
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cli.options import RunArgument, refuse_idle


@contextlib.contextmanager
def _opening(url: str) -> Iterator[None]:
    """Open a page by a file that forwards to it.

    The arguments of a browser can be seen by every user of the machine, the address is a secret.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:  # mode 0600
        file.write(f'<meta http-equiv="refresh" content="0; url={url}">')
        file.flush()
        threading.Timer(0.2, webbrowser.open, [Path(file.name).as_uri()]).start()
        yield


def view(
    run: RunArgument,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="Port on this machine; 0: any free one."),
    ] = 0,
    memory: Annotated[
        int,
        typer.Option(
            "--memory", metavar="MB", min=16, help="Memory for tiles, heatmaps and pictures."
        ),
    ] = 512,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="DIR",
            help="Serve nothing; write pages of single slides, which open from their files.",
        ),
    ] = None,
    slides: Annotated[
        list[str] | None,
        typer.Option("--slide", metavar="ID", help="With --export: a slide. May be repeated."),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            "--worst",
            metavar="N",
            min=1,
            help="With --export: the N slides whose score is farthest from their label; by "
            "default 10.",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="With --export: a model. May be repeated."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit",
            metavar="MB",
            min=0.2,
            help="With --export: size of a page, at most; by default 8.",
        ),
    ] = None,
) -> None:
    """Show a run in the browser: slides, heatmaps, annotations, lesions and reviews.

    Serves 127.0.0.1 only, until Ctrl-C. From another machine: ssh -L PORT:127.0.0.1:PORT HOST.
    """
    if export is None:
        of_export = {"--slide": slides, "--worst": worst, "--model": models, "--limit": limit}
        refuse_idle("without --export", of_export)
    else:
        refuse_idle("with --export", {"--port": port or None, "--open": show})
    if slides:
        refuse_idle("with --slide", {"--worst": worst})
    from tiling.readers.memory import CACHE_VARIABLE
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.viewer.answers import Answers
    from wsi_pipeline.viewer.exported import DEFAULT_LIMIT_MB, DEFAULT_WORST, export_pages
    from wsi_pipeline.viewer.review import Reviews
    from wsi_pipeline.viewer.server import Viewer
    from wsi_pipeline.viewer.shown_run import ShownRun

    folder = RunFolder(run)
    shown, reviews = ShownRun(folder, budget=(memory << 20) * 3 // 4), Reviews(folder)
    if export is not None:
        problems = export_pages(
            shown,
            reviews,
            export,
            slides=slides or (),
            worst=worst or DEFAULT_WORST,
            models=models or (),
            limit=int((limit or DEFAULT_LIMIT_MB) * 1e6),
            print_line=lambda line: typer.echo(f"view: {line}"),
        )
        shown.close()
        for problem in problems:
            typer.echo(f"view: {problem}", err=True)
        typer.echo(export / "index.html")
        raise typer.Exit(3 if problems else 0)
    os.environ.setdefault(CACHE_VARIABLE, str(memory / 4))  # decoded file tiles of open slides
    answers = Answers(shown, reviews)
    with Viewer(answers, port=port) as viewer, contextlib.ExitStack() as stack:
        typer.echo(f"view: {viewer.address.url} (Ctrl-C ends it)")
        threading.Thread(target=shown.open_first, daemon=True).start()
        if show:
            stack.enter_context(_opening(viewer.address.url))
        with contextlib.suppress(KeyboardInterrupt):  # the way that it is meant to end
            viewer.serve_forever(poll_interval=0.2)
