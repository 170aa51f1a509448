"""Errors below the pipeline; each message states what is wrong, the value, the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
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

    def about(self, name: str) -> "TilingError":
        """Put the name of the slide in front."""
        return type(self)(f"{name}: {self}")


class SlideError(TilingError, OSError):
    """A slide cannot be opened or read."""


class AnnotationError(TilingError, ValueError):
    """An annotation file cannot be read, or does not fit its slide."""


class GridError(TilingError, ValueError):
    """The requested grid does not fit the slide."""


class PatchSizeError(GridError):
    """The slide holds no patch of the size and resolution asked for.

    Parameters
    ----------
    fact : str
        What does not fit.
    remedy : str
        What to do where size and resolution are free to choose.
    remedy_if_fixed : str
        What to do where a checkpoint fixes them.
    """

    def __init__(self, fact: str, remedy: str, remedy_if_fixed: str) -> None:
        super().__init__(fact, remedy, remedy_if_fixed)
        self.fact = fact
        self.remedy = remedy
        self.remedy_if_fixed = remedy_if_fixed

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}"

    def about(self, name: str) -> "PatchSizeError":
        """Put the name of the slide in front."""
        return PatchSizeError(f"{name}: {self.fact}", self.remedy, self.remedy_if_fixed)


class TissueError(TilingError, ValueError):
    """No tissue was found, or the tissue settings make no sense."""


class StoreError(TilingError, OSError):
    """A patch store is missing, unfinished, damaged or not ours."""


class PatchIndexError(StoreError, IndexError):
    """A patch store has no patch of this number."""


class UnsupportedSlideError(SlideError):
    """A slide is sound but stored in a way that is not read here; copying it again is no help."""


class SeveralImagesError(UnsupportedSlideError):
    """A file holds channels, planes or images of which no one is the picture."""


class UnsupportedTilesError(UnsupportedSlideError):
    """No reader here, OpenSlide among them, decodes the file tiles."""


class PassedOnError(SlideError):
    """A reader leaves a file that it accepted to the next one in `tiling.readers.READERS`."""


class MaskError(TilingError, ValueError):
    """A mask file cannot be read, or is not a mask."""


@contextmanager
def naming_file(path: Path | None) -> Iterator[None]:
    """Put the file's name before a message that does not name it yet."""
    try:
        yield
    except (SlideError, GridError, TissueError, AnnotationError) as error:
        if path is None or str(error).startswith(f"{path.name}: "):
            raise
        raise error.about(path.name) from error
