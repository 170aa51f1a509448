"""Progress on standard error: a moving bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Without a terminal (a cluster's log file), a long slide says something this often.
PLAIN_INTERVAL_S = 20.0


class StageProgress:
    """Says what a stage is doing: how many slides, where inside the slide, time left."""

    def __init__(self, stage: str, n_units: int, *, quiet: bool = False) -> None:
        self._stage = stage
        self._n_units = n_units
        self._quiet = quiet
        self._done = 0
        self._name = ""
        self._last_line = time.monotonic()
        self._started = time.monotonic()
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
            self._outer = self._bars.add_task(self._stage, total=self._n_units)
            self._inner = self._bars.add_task("", total=None, visible=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, name: str) -> None:
        """Say which slide or model is next."""
        self._name = name
        self._started = self._last_line = time.monotonic()
        if self._bars:
            self._bars.reset(self._inner, description=f"  {name}", visible=True, total=None)

    def inside(self, done: int, total: int) -> None:
        """Say how far the current slide or model is."""
        if self._quiet:
            return
        if self._bars:
            self._bars.update(self._inner, completed=done, total=total)
        elif time.monotonic() - self._last_line > PLAIN_INTERVAL_S and done:
            self._last_line = time.monotonic()
            left = (self._last_line - self._started) * (total - done) / done
            self.line(f"{self._name}: {done} of {total}, about {left:.0f} s left")

    def end(self, name: str, line: str, *, failed: bool = False) -> None:
        """Say how a slide or model ended; a failure is said even where quiet is asked for."""
        self._done += 1
        if self._bars:
            self._bars.update(self._outer, completed=self._done)
        if failed or not self._quiet:
            self._write(f"[{self._done}/{self._n_units}] {name}: {line}")

    def line(self, text: str) -> None:
        """Write one line, unless quiet."""
        if not self._quiet:
            self._write(text)

    def _write(self, text: str) -> None:
        self._console.print(f"{self._stage}: {text}", markup=False)
