"""What a format of annotation files is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiling.annotation.formats.drawing import Drawing


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotation files; listed in `tiling.annotation.formats.FORMATS`."""

    title: str  # in docs/labels.md
    suffixes: tuple[str, ...]  # of its files, in lower case; ``.gz`` may follow
    hallmark: str  # what `accepts` looks for, for messages
    decode: Callable[[bytes], tuple[Any, tuple[str, ...]]]  # gives content, notes on its encoding
    accepts: Callable[[Any], bool]  # whether content is of this format
    # Puts content into a drawing; AnnotationError where it cannot.
    parse: Callable[[Any, Drawing], None]
