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


class UnsupportedSlideError(SlideError):
    """A slide is sound but stored in a way that is not read here; copying it again is no help."""


class SeveralImagesError(UnsupportedSlideError):
    """A file holds channels, planes or images of which no one is the picture."""


class UnsupportedTilesError(UnsupportedSlideError):
    """No reader here, OpenSlide among them, decodes the file tiles."""


class MaskError(TilingError, ValueError):
    """A mask file cannot be read, or is not a mask."""
