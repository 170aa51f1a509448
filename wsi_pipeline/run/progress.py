"""Progress on standard error: a moving bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tiling.wording import format_duration, format_rate, plural, pluralize
from wsi_pipeline.run.activity import Took

# Without a terminal (a cluster's log file), a long slide prints a line this often.
PLAIN_INTERVAL_S = 20.0
LEAST_LEFT_S = 10.0  # shorter remaining times are not shown


class _CountColumn(ProgressColumn):
    """How many are done of how many, and what they are."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        return Text(f"{task.completed:.0f}/{task.total:.0f} {plural(task.fields['noun'])}")


class _SpeedColumn(ProgressColumn):
    """How many per second of what is counted, or how long each takes."""

    def render(self, task: Task) -> Text:
        return Text(format_rate(task.speed, task.fields["noun"]) if task.speed else "")


_console: Console | None = None


def _open_console() -> Console:
    """Return the console of standard error, which two stages at a time share."""
    global _console
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # below a moving bar
    if _console is None or _console.file is not stream:
        _console = Console(file=sys.stderr, highlight=False, soft_wrap=True, emoji=False)
    return _console


class StageProgress:
    """Shows the progress of a stage: slides done, position inside a slide, speed and time left.

    Parameters
    ----------
    stage : str
    n_units : int
    noun : str
        What a unit is.
    quiet : bool
        Show failures only.
    in_background : bool
        Another stage has the moving bar.
    on_end : function, optional
        Called with the name of each unit that ends, whatever its outcome.
    """

    def __init__(
        self,
        stage: str,
        n_units: int,
        *,
        noun: str = "slide",
        quiet: bool = False,
        in_background: bool = False,
        on_end: Callable[[str], None] | None = None,
    ) -> None:
        self._stage = stage
        self._n_units = n_units
        self._noun = noun
        self._counted = ""  # what is counted inside the current unit
        self._quiet = quiet
        self._done = 0
        self._name = ""
        self._first_begun: float | None = None
        self._begun: set[str] = set()
        self._n_worked = 0  # processed units, without those that were kept
        self._last_line = time.monotonic()
        self._started = time.monotonic()
        self._console = _open_console()
        self._bars: Progress | None = None
        self._has_bars = self._console.is_terminal and not quiet and not in_background
        self._on_end = on_end

    def __enter__(self) -> Self:
        if self._has_bars:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _CountColumn(),
                _SpeedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
            self._outer = self._bars.add_task(self._stage, total=self._n_units, noun=self._noun)
            self._inner = self._bars.add_task("", total=None, visible=False, noun="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, name: str, counted: str) -> None:
        """Show the slide or model that is next, inside which `counted` are counted: a noun."""
        self._name = name
        self._counted = counted
        self._started = self._last_line = time.monotonic()
        self._first_begun = self._first_begun or self._started
        self._begun.add(name)
        if self._bars:
            self._bars.reset(
                self._inner, description=f"  {name}", visible=True, total=None, noun=counted
            )

    def begin_all(self, names: Sequence[str]) -> None:
        """Register the slides or models that several workers are going to process."""
        self._first_begun = self._first_begun or time.monotonic()
        self._begun.update(names)

    def leave_out(self) -> None:
        """Count one slide or model less, which will not be processed."""
        self._n_units -= 1
        if self._bars:
            self._bars.update(self._outer, total=self._n_units)

    def inside(self, done: int, total: int) -> None:
        """Show the progress of the current slide or model."""
        if self._quiet:
            return
        if self._bars:
            self._bars.update(self._inner, completed=done, total=total)
        elif time.monotonic() - self._last_line > PLAIN_INTERVAL_S and done:
            self._last_line = time.monotonic()
            rate = done / (self._last_line - self._started)
            left = f", about {format_duration((total - done) / rate)} left" if done < total else ""
            at = f"{done} of {pluralize(total, self._counted)}"
            self.line(f"{self._name}: {at}, {format_rate(rate, self._counted)}{left}")

    def end(self, name: str, line: str, *, failed: bool = False, took: Took | None = None) -> None:
        """Show the outcome of a slide or model; failures are shown even if quiet.

        Without a terminal, for example in the log file of a job, also how long it took, and when
        and where it ended.
        """
        if took is not None and not self._console.is_terminal:
            line += f" [{format_duration(took.seconds)} on {took.host}, {took.at[:19]}Z]"
        self._done += 1
        if self._bars:
            self._bars.update(self._outer, completed=self._done)
        if failed or not self._quiet:
            self._write(f"[{self._done}/{self._n_units}] {name}: {line}{self._time_left(name)}")
        if self._on_end is not None:
            self._on_end(name)

    def _time_left(self, name: str) -> str:
        """Estimate the time left from the units that were processed, without those kept."""
        if name not in self._begun or self._first_begun is None:
            return ""
        self._n_worked += 1
        elapsed = time.monotonic() - self._first_begun
        left = elapsed / self._n_worked * (self._n_units - self._done)
        if left < LEAST_LEFT_S:
            return ""
        rate = format_rate(self._n_worked / elapsed, self._noun)
        return f" ({rate}, about {format_duration(left)} left)"

    def line(self, text: str) -> None:
        """Write one line, unless quiet."""
        if not self._quiet:
            self._write(text)

    def _write(self, text: str) -> None:
        self._console.print(f"{self._stage}: {text}", markup=False)
