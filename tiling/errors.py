"""What can go wrong below the pipeline; each message says what is wrong, the value, the cure."""


class TilingError(Exception):
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
