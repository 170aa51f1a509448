"""The ``view`` command."""

import contextlib
import threading
import webbrowser
from typing import Annotated

import typer

from wsi_pipeline.cli.options import RunArgument


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
) -> None:
    """Show a run in the browser: slides, heatmaps, annotations, lesions and reviews.

    Serves 127.0.0.1 only, until Ctrl-C. From another machine: ssh -L PORT:127.0.0.1:PORT HOST.
    """
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.viewer.answers import Answers
    from wsi_pipeline.viewer.review import Reviews
    from wsi_pipeline.viewer.server import Viewer
    from wsi_pipeline.viewer.shown_run import ShownRun

    folder = RunFolder(run)
    answers = Answers(ShownRun(folder, budget=memory << 20), Reviews(folder))
    with Viewer(answers, port=port) as viewer:
        typer.echo(f"view: {viewer.address.url} (Ctrl-C ends it)")
        if show:
            threading.Timer(0.2, webbrowser.open, [viewer.address.url]).start()
        with contextlib.suppress(KeyboardInterrupt):  # the way that it is meant to end
            viewer.serve_forever(poll_interval=0.2)
