"""What can go wrong below the pipeline; each message says what is wrong, the value, the cure."""

from pathlib import Path
from typing import TypeVar


class ExpectedError(Exception):
    """Base of the errors that both packages raise on purpose: their message is for the user."""

    damaged: Path | None = None  # the file or store whose bytes are not those that were written


Error = TypeVar("Error", bound=ExpectedError)


def of_damage(error: Error, path: Path) -> Error:
    """Attach to an error which file is damaged, so that the stage that made it can rebuild it."""
    error.damaged = path
    return error


class TilingError(ExpectedError):
    """Base of every error this package raises on purpose."""


class SlideError(TilingError, OSError):
    """A slide cannot be opened or read."""


class AnnotationError(TilingError, ValueError):
    """An annotation file cannot be read, or does not fit its slide."""


class GridError(TilingError, ValueError):
    """The grid asked for cannot be laid over the slide."""


class TissueError(TilingError, ValueError):
    """No tissue was found, or the tissue settings make no sense."""


class StoreError(TilingError, OSError):
    """A patch store is missing, unfinished, damaged or not ours."""
