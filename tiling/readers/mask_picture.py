"""Pictures whose numbers mean something: masks, as TIFF or PNG.

What is drawn is distinguished from the background as a viewer shows it: where white is stored as
zero the numbers are inverted, transparent pixels are background, and of a palette the index 0 is
the background, or black where 0 is another colour. Compression that changes numbers is refused. A
picture of any size is read in bounded memory, its file tiles or strips one by one.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.errors import MaskError, SlideError
from tiling.files import open_file
from tiling.readers.common import FINEST_MPP, MICRONS_PER_INCH, printer_dpi
from tiling.readers.tiff_structure import TIFF_HEADS, find_cut

SUFFIXES = (".tif", ".tiff", ".png")
MAX_SEGMENT_BYTES = 2**28  # of one decoded file tile or strip
MAX_PNG_PX = 2**26  # a PNG can only be decoded whole
BAND_BYTES = 2**24  # of uncompressed strips read at once
COARSEST_MPP = 100.0  # µm per px that a mask of a slide may have
# JPEG and its kind: zeros come back as other numbers.
LOSSY = {6, 7, 33003, 33004, 33005, 34712, 34892, 34934, 50001, 50002, 52546}
MINISWHITE, MINISBLACK, RGB_COLOURS, PALETTE = 0, 1, 2, 3  # TIFF 6.0, PhotometricInterpretation
SEPARATE = 2  # PlanarConfiguration
ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# What the decoders raise on damaged files.
DAMAGE = (OSError, ValueError, SyntaxError, LookupError, RuntimeError, EOFError, struct.error,
          zlib.error)  # fmt: skip

Numbers = NDArray[Any]


@dataclass(frozen=True)
class MaskBlock:
    """A rectangle of a mask."""

    x: int
    y: int
    values: Numbers  # (H, W); of a palette its indices; of colours the largest channel
    drawn: NDArray[np.bool_]  # (H, W) not background


@dataclass(frozen=True)
class MaskLevel:
    """One stored size of a mask."""

    size: tuple[int, int]  # (width, height), px
    tile: tuple[int, int] | None  # (width, height), px; None: in strips
    page: Any  # tifffile.TiffPage; None of a PNG


class MaskPicture(Protocol):
    """An open mask."""

    levels: tuple[MaskLevel, ...]  # the finest first
    copies: tuple[MaskLevel, ...]  # images that may be smaller copies, whatever their shape
    mpp: tuple[float, float] | None  # (x, y) µm per px of the finest level, if stated
    is_coloured: bool  # channels differ, found while reading
    notes: list[str]  # what was assumed, added to while reading

    def read(self, level: MaskLevel) -> Iterator[MaskBlock]:
        """Read a level block by block; what is not stored is left out, and is background."""


@contextmanager
def open_mask(path: Path) -> Iterator[MaskPicture]:
    """Open a mask.

    Parameters
    ----------
    path : Path
        TIFF (also OME-TIFF, pyramids) or PNG, by its content.

    Raises
    ------
    MaskError
        If it cannot be read, or is no mask; the message does not name the file.
    """
    with naming_damage(path), open_file(path, "rb") as file:
        head = file.read(8)
    if head == PNG_HEAD:
        with naming_damage(path):
            picture: MaskPicture = _PngMask(path)
        yield picture
        return
    if head[:4] not in TIFF_HEADS:
        raise MaskError("is neither a TIFF nor a PNG by its content; export it again")
    import tifffile  # a quarter of a second that only these files need

    with naming_damage(path):
        tif = tifffile.TiffFile(path)
    with tif:
        with naming_damage(path):
            picture = _TiffMask(path, tif)
        yield picture


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn anything that a decoder raises into a `MaskError`."""
    try:
        yield
    except MaskError:
        raise
    except DAMAGE as error:
        cut = find_cut(path)
        reason = f"cut off: {cut}" if cut else getattr(error, "strerror", None) or str(error)
        raise MaskError(f"cannot be read as a mask ({reason}); export it again") from error


class _Outline:
    """Sees whether a mask is drawn with transparency alone: black on nothing."""

    def __init__(self) -> None:
        self._is_drawn = self._has_opaque = self._has_transparent = False

    def hide(self, drawn: NDArray[np.bool_], alpha: Numbers) -> NDArray[np.bool_]:
        """Take transparent pixels out of what is drawn."""
        opaque = alpha != 0
        self._has_opaque |= bool(opaque.any())
        self._has_transparent |= not opaque.all()
        self._is_drawn |= bool(drawn.any())
        return np.asarray(drawn & opaque, np.bool_)

    def check(self) -> None:
        if self._has_opaque and self._has_transparent and not self._is_drawn:
            raise MaskError(
                "is black all over and drawn with transparency alone; save it with one channel"
            )


def read_drawn(path: Path) -> NDArray[np.bool_]:
    """Read what is drawn on a mask at its finest level: (H, W).

    Raises
    ------
    MaskError
        As `open_mask`.
    """
    with open_mask(path) as picture:
        width, height = picture.levels[0].size
        drawn = np.zeros((height, width), np.bool_)
        for block in picture.read(picture.levels[0]):
            rows, columns = block.drawn.shape
            drawn[block.y : block.y + rows, block.x : block.x + columns] = block.drawn
    return drawn


# --- TIFF ------------------------------------------------------------------------------------


class _TiffMask:
    def __init__(self, path: Path, tif: Any) -> None:
        from tiling.readers.tiff_images import choose_image

        try:
            image = choose_image(path.name, tif)
        except SlideError as error:
            raise MaskError(str(error).removeprefix(f"{path.name}: ")) from error
        if image.n_focal > 1:
            raise MaskError(f"is a stack of {image.n_focal} planes; save the one that is the mask")
        if len(image.levels[0]) > 1:
            raise MaskError("has a plane for each of three colours; save it with one channel")
        self._path = path
        self.levels = tuple(_tiff_level(page) for page, *_ in image.levels)
        self.copies = tuple(_tiff_level(page) for page in image.copies)
        self.mpp = _usable(image.mpp)
        self.is_coloured = False
        self.notes = list(image.notes)
        if self.mpp is None and (dpi := printer_dpi(image.mpp)):
            self.notes.append(f"its resolution of {dpi} dpi is a screen's or printer's, not used")

    def read(self, level: MaskLevel) -> Iterator[MaskBlock]:
        page = level.page
        with naming_damage(self._path):
            _check_page(page)
            if page.photometric == MINISWHITE:
                self.notes.append("stores white as zero: what a viewer shows white is drawn")
            indices, colours = self._read_indices(page), _tiff_colours(page)
            background = _find_background(indices, colours, self.notes)
            outline = _Outline()
            for x, y, samples in self._read_samples(page):
                values, drawn = self._interpret(samples, page, background, outline)
                yield MaskBlock(x, y, values, drawn)
            outline.check()

    def _interpret(
        self, samples: Numbers, page: Any, background: frozenset[int], outline: "_Outline"
    ) -> tuple[Numbers, NDArray[np.bool_]]:
        """(H, W, n) numbers -> (H, W) values, and what is drawn."""
        extra = tuple(page.extrasamples)
        n_colours = samples.shape[2] - len(extra)
        colours = samples[..., :n_colours]
        if page.photometric == MINISWHITE:
            colours = _invert(colours, page.bitspersample)
        values = colours.max(axis=2)
        self.is_coloured |= bool((colours != values[..., None]).any())
        drawn = values != 0
        if page.photometric == PALETTE:
            drawn = ~np.isin(values, list(background))
        for number, kind in enumerate(extra):
            if kind in ALPHA:
                drawn = outline.hide(drawn, samples[..., n_colours + number])
        return values, np.asarray(drawn, np.bool_)

    def _read_indices(self, page: Any) -> Iterator[Numbers]:
        if page.photometric == PALETTE:
            yield from (samples[..., 0] for _, _, samples in self._read_samples(page))

    def _read_samples(self, page: Any) -> Iterator[tuple[int, int, Numbers]]:
        """Yield corner and numbers, (H, W, n), of each file tile, strip or band of rows."""
        width, height = int(page.imagewidth), int(page.imagelength)
        if _is_plain(page):
            yield from _read_bands(self._path, page)
            return
        for values, position, shape in page.segments(maxworkers=1):
            if values is None:
                continue  # a sparse file's empty tile
            y, x = position[2], position[3]
            rows, columns = min(shape[1], height - y), min(shape[2], width - x)
            yield x, y, values[0, :rows, :columns]


def _tiff_level(page: Any) -> MaskLevel:
    tile = (int(page.tilewidth), int(page.tilelength)) if page.is_tiled else None
    return MaskLevel((int(page.imagewidth), int(page.imagelength)), tile, page)


def _check_page(page: Any) -> None:
    if int(page.compression) in LOSSY:
        raise MaskError(
            f"is compressed with {page.compression.name}, which turns some zeros into other "
            "numbers; save the mask with deflate, LZW or no compression"
        )
    if page.dtype is None or page.dtype.kind not in "buif":
        raise MaskError(f"holds numbers of the kind {page.dtype}; save it with whole numbers")
    kind = page.photometric
    if kind not in (MINISWHITE, MINISBLACK, RGB_COLOURS, PALETTE):
        raise MaskError(
            f"has pixels of the kind {getattr(kind, 'name', kind)}; save it with one channel"
        )
    if kind == MINISWHITE and page.dtype.kind not in "bu":
        raise MaskError(f"stores white as zero in {page.dtype}; save it with black as zero")
    if page.samplesperpixel > 1 and page.planarconfig == SEPARATE:
        raise MaskError("keeps its colours apart; save the mask with one channel")
    if _is_plain(page):
        return
    if page.is_tiled:
        shape = (page.tilelength, page.tilewidth)
    else:
        shape = (min(page.rowsperstrip, page.imagelength), page.imagewidth)
    n_bytes = math.prod(shape) * page.samplesperpixel * page.dtype.itemsize
    if n_bytes > MAX_SEGMENT_BYTES:
        raise MaskError(
            f"is stored in strips of {shape[1]} x {shape[0]} px, {n_bytes >> 20} MiB each, which "
            "can only be decoded whole; save it tiled, or smaller: the mask is scaled to the slide"
        )


def _is_plain(page: Any) -> bool:
    """Whether the file holds the numbers as they are, row after row."""
    return bool(
        page.compression == 1
        and not page.is_tiled
        and page.is_contiguous
        and page.fillorder == 1
        and page.bitspersample == 8 * page.dtype.itemsize
    )


def _read_bands(path: Path, page: Any) -> Iterator[tuple[int, int, Numbers]]:
    width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    row_bytes = width * samples * dtype.itemsize
    rows = max(1, BAND_BYTES // row_bytes)
    with open_file(path, "rb") as file:
        for top in range(0, height, rows):
            count = min(rows, height - top)
            file.seek(page.dataoffsets[0] + top * row_bytes)
            data = file.read(count * row_bytes)
            if len(data) < count * row_bytes:
                raise MaskError("cannot be read as a mask (it is cut off); copy it again")
            yield 0, top, np.frombuffer(data, dtype).reshape(count, width, samples)


def _invert(values: Numbers, bits: int) -> Numbers:
    if values.dtype == np.bool_:
        return ~values
    return np.asarray(2**bits - 1 - values.astype(np.int64)).astype(values.dtype)


def _tiff_colours(page: Any) -> Numbers:
    """Colours of a palette, (n, 3); empty without one."""
    if page.photometric != PALETTE or page.colormap is None:
        return np.zeros((0, 3), np.int64)
    return np.asarray(page.colormap, np.int64).T


def _find_background(
    indices: Iterator[Numbers], colours: Numbers, notes: list[str]
) -> frozenset[int]:
    """Find which indices of a palette are background.

    Parameters
    ----------
    indices : arrays of int
        Of all pixels; ignored if index 0 is black.
    colours : (n, 3)
    notes : list
        Added to where black is not the index 0.
    """
    is_black: NDArray[np.bool_] = np.asarray(~colours.any(axis=1))
    if not len(colours) or is_black[0]:
        return frozenset({0})
    used: set[int] = set()
    for block in indices:
        used.update(np.unique(block).tolist())
    black = frozenset(int(i) for i in used if i < len(is_black) and is_black[i])
    what = "black" if black else "its index 0, though it is not black,"
    notes.append(f"of its palette {what} is taken for the background")
    return black or frozenset({0})


# --- PNG -------------------------------------------------------------------------------------


class _PngMask:
    def __init__(self, path: Path) -> None:
        with open_file(path, "rb") as file:
            head = file.read(26)
        if len(head) < 26:
            raise MaskError("cannot be read as a mask (it is cut off); export it again")
        width, height, bits, colour_type = struct.unpack(">IIBB", head[16:26])
        if bits == 16 and colour_type != 0:
            raise MaskError("has 16 bits per colour; save it with one channel")
        self._path = path
        self.levels: tuple[MaskLevel, ...] = (MaskLevel((width, height), None, None),)
        self.copies: tuple[MaskLevel, ...] = ()
        self.is_coloured = False
        self.notes: list[str] = []
        self.mpp: tuple[float, float] | None = None
        dpi = None
        if width * height <= MAX_PNG_PX:
            with Image.open(path) as image:
                dpi = image.info.get("dpi")
        if dpi and min(dpi) > 0:
            self.mpp = _usable((MICRONS_PER_INCH / float(dpi[0]), MICRONS_PER_INCH / float(dpi[1])))

    def read(self, level: MaskLevel) -> Iterator[MaskBlock]:
        width, height = level.size
        if width * height > MAX_PNG_PX:
            raise MaskError(
                f"{width} x {height} px are too many for a PNG, which can only be decoded whole "
                f"(at most {MAX_PNG_PX}); make it smaller, or save it as a tiled TIFF"
            )
        with naming_damage(self._path):
            yield self._decode()

    def _decode(self) -> MaskBlock:
        with Image.open(self._path) as image:
            samples = np.asarray(image)
            mode, hidden = image.mode, image.info.get("transparency")
            palette = image.getpalette("RGB") if mode == "P" else None
        if samples.ndim == 2:
            samples = samples[..., None]
        n_colours = {"LA": 1, "RGBA": 3}.get(mode, samples.shape[2])
        colours = samples[..., :n_colours]
        values = colours.max(axis=2)
        self.is_coloured = bool((colours != values[..., None]).any())
        drawn = values != 0
        outline = _Outline()
        if palette is not None:
            table = np.asarray(palette, np.int64).reshape(-1, 3)
            drawn = ~np.isin(values, list(_find_background(iter([values]), table, self.notes)))
        if n_colours < samples.shape[2]:
            drawn = outline.hide(drawn, samples[..., n_colours])
        if hidden is not None:
            drawn = outline.hide(drawn, ~_is_hidden(colours, hidden))
        outline.check()
        return MaskBlock(0, 0, values, drawn)


def _is_hidden(colours: Numbers, hidden: Any) -> NDArray[np.bool_]:
    """Find which pixels a PNG's transparency chunk hides: a colour, or indices of its palette."""
    if isinstance(hidden, bytes):
        return np.isin(colours[..., 0], np.flatnonzero(np.frombuffer(hidden, np.uint8) == 0))
    return np.asarray((colours == np.asarray(hidden)).all(axis=2), np.bool_)


def _usable(mpp: tuple[float, float] | None) -> tuple[float, float] | None:
    if mpp is None or printer_dpi(mpp) is not None:
        return None
    return mpp if min(mpp) >= FINEST_MPP and max(mpp) <= COARSEST_MPP else None
