"""Which image of a TIFF is the picture: its pages, plane, colours and resolution, decided together.

A TIFF may hold a slide along with its label, a macro picture and other scenes, a pyramid, planes of
one colour each, a focal stack or a time series. The choice is made here for slides, masks and
single images alike:

- the largest image is taken (pictures named label, macro, overview or thumbnail only where there is
  nothing else), and its resolution is the one stated for that image, never that of another one;
- three grey planes are red, green and blue where the file states so, or states nothing else; other
  channels are refused;
- of a focal stack the middle plane is taken, with a note; a time series is refused.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tiling.errors import SeveralImagesError, SlideError
from tiling.readers.common import positive_mpp
from tiling.readers.tiff_metadata import read_mpp
from tiling.readers.tiff_ome import OmeChannel, OmeImage, parse_ome
from tiling.wording import name_some

MOST_IMAGES = 1000  # in one file; slides have a dozen
MOST_PLANES = 20_000  # in one file with metadata of a stack
WORTH_A_NOTE = 0.1  # an image that is left out is named if it has this share of the pixels
SAME_EXTENT = 0.02  # relative difference of the sides of two images of one area, in µm
RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
NOT_THE_SLIDE = re.compile(r"\b(label|macro|overview|thumbnail)\b", re.IGNORECASE)
MASK_BIT = 4  # of NewSubfileType: a transparency mask of another image (TIFF 6.0, section 8)


@dataclass(frozen=True)
class TiffImage:
    """The picture of a file."""

    levels: tuple[tuple[Any, ...], ...]  # pages of each level, finest first; 1, or 3: R, G, B
    copies: tuple[Any, ...]  # pages that may be smaller copies, whatever their shape
    mpp: tuple[float, float] | None  # (x, y) µm per px as stated, not judged
    is_ome: bool
    n_focal: int = 1  # focal planes, of which the middle one was chosen
    notes: tuple[str, ...] = ()

    @property
    def page(self) -> Any:
        """First page of the finest level."""
        return self.levels[0][0]


def choose_image(file_name: str, tif: Any) -> TiffImage:
    """Choose the picture of an open TIFF.

    Parameters
    ----------
    tif : tifffile.TiffFile

    Raises
    ------
    SeveralImagesError
        If the file holds what is not one picture: other channels than red, green and blue, a time
        series, or several images of one size.
    SlideError
        If the file has more images than any slide, or no image.
    """
    pages = list_pages(file_name, tif)
    if not pages:
        raise SlideError(f"{file_name}: holds no image; copy the file again from its source")
    if tif.is_ome:
        found = _choose_ome(file_name, tif, pages)
        if found is not None:
            return found
    return _choose_plain(file_name, tif, pages)


def list_pages(file_name: str, tif: Any) -> list[Any]:
    """List the images of a file, those inside others left out.

    Raises
    ------
    SlideError
        If there are more than any slide has: they would be read for hours.
    """
    most = MOST_PLANES if tif.is_ome or tif.is_imagej else MOST_IMAGES
    return _list(file_name, tif.pages, most)


def _list(file_name: str, pages: Any, most: int = MOST_IMAGES) -> list[Any]:
    listed = [page.aspage() for page in itertools.islice(pages, most + 1)]
    if len(listed) > most:
        raise SlideError(
            f"{file_name}: more than {most} images in its TIFF directory, more than any slide has; "
            "copy the file again from its source"
        )
    return listed


# --- OME-TIFF --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """An OME Image and the pages of the plane that would be shown."""

    image: OmeImage
    pages: tuple[Any, ...]  # one per channel of the focal plane
    note: str

    @property
    def n_pixels(self) -> int:
        return self.image.size[0] * self.image.size[1]


def _choose_ome(file_name: str, tif: Any, pages: list[Any]) -> TiffImage | None:
    """Choose among the Images of the OME-XML; None where it describes another file."""
    images = parse_ome(tif.ome_metadata, file_name)
    scenes = [scene for image in images if (scene := _find_scene(image, pages)) is not None]
    if not scenes:
        if any(not block.is_here for image in images for block in image.blocks):
            raise SeveralImagesError(
                f"{file_name}: one part of an OME-TIFF in several files, and not the one with the "
                "pixels; name that one, or convert them to one file"
            )
        return None
    slides = [scene for scene in scenes if not NOT_THE_SLIDE.search(scene.image.name)] or scenes
    best = max(slides, key=lambda scene: scene.n_pixels)  # the first of equals
    _check_scene(file_name, best)
    own_copies = _list(file_name, best.pages[0].pages) if best.pages[0].subifds else []
    others = [scene for scene in scenes if scene is not best]
    copies = [s for s in others if _is_ome_copy(s, best)]
    pyramid = _stack_levels(best.pages[0], own_copies + [s.pages[0] for s in copies])
    levels = [(page,) for page in pyramid]
    notes: tuple[str, ...] = (best.note,) if best.note else ()
    if len(best.pages) == 3:
        levels = _colour_levels(file_name, best.pages)
        notes += _rgb_note(best.image.channels)
    left_out = [s for s in slides if s is not best and s not in copies]
    notes += _note_others(best.image.size, [(s.image.name, s.image.size) for s in left_out])
    return TiffImage(
        levels=tuple(levels),
        copies=tuple(own_copies),
        mpp=positive_mpp(*best.image.um_per_px) or read_mpp(tif, best.pages[0]),
        is_ome=True,
        n_focal=best.image.n_z,
        notes=notes,
    )


def _find_scene(image: OmeImage, pages: list[Any]) -> _Scene | None:
    """Find the pages of an Image's middle focal plane at its first time point."""
    # Samples per pixel are those of the page, whatever the channels claim.
    first = image.find_pages(1, len(pages))
    if not first:
        return None
    samples = pages[min(first.values())].samplesperpixel
    by_plane = image.find_pages(samples, len(pages))
    n_channels, middle = image.n_channels(samples), image.n_z // 2
    chosen = [by_plane.get((channel, middle, 0)) for channel in range(n_channels)]
    found = tuple(pages[index] for index in chosen if index is not None)
    sizes = {(page.imagewidth, page.imagelength) for page in found}
    if len(found) < n_channels or sizes != {image.size}:
        return None
    return _Scene(image, found, _focal_note(image.n_z))


def _check_scene(file_name: str, scene: _Scene) -> None:
    image, n_channels = scene.image, len(scene.pages)
    if image.n_t > 1:
        raise _time_series(file_name, image.n_t)
    if n_channels == 1:
        return
    names = [c.name or f"channel {i + 1}" for i, c in enumerate(image.channels)]
    if n_channels != 3 or not _is_rgb(image.channels, scene.pages):
        raise _not_rgb(file_name, n_channels, names)


def _is_rgb(channels: Sequence[OmeChannel], pages: Sequence[Any]) -> bool:
    """Whether three planes are red, green and blue, by colours, names, or for lack of both."""
    if any(page.samplesperpixel != 1 for page in pages):
        return False
    if any(channel.is_fluorescent for channel in channels):
        return False
    colours = [channel.rgb for channel in channels]
    if len(colours) == 3 and not set(colours) <= {None, (255, 255, 255)}:
        return tuple(colours) == RGB
    return _are_rgb_names([channel.name for channel in channels])


def _are_rgb_names(names: Sequence[str]) -> bool:
    plain = [name.strip().casefold() for name in names]
    if all(re.fullmatch(r"((channel|ch|c)?[ :_#-]*\d*([ :_-]\d+)*)?", name) for name in plain):
        return True  # numbered, or without names
    return plain in (["red", "green", "blue"], ["r", "g", "b"])


def _rgb_note(channels: Sequence[OmeChannel]) -> tuple[str, ...]:
    stated = tuple(channel.rgb for channel in channels) == RGB
    named = [c.name.strip().casefold()[:1] for c in channels] == ["r", "g", "b"]
    if stated or named:
        return ()
    return ("three grey planes without colours are taken for red, green and blue",)


def _is_ome_copy(scene: _Scene, base: _Scene) -> bool:
    """Whether another Image is a smaller copy: same area by the sizes stated, if they are."""
    if len(scene.pages) != 1 or len(base.pages) != 1 or not _is_copy(scene.pages[0], base.pages[0]):
        return False
    for side, own, other in zip((0, 1), base.image.um_per_px, scene.image.um_per_px, strict=True):
        if own is None or other is None:
            continue
        extents = own * base.image.size[side], other * scene.image.size[side]
        if abs(extents[0] - extents[1]) > SAME_EXTENT * max(extents):
            return False
    return True


def _note_others(
    size: tuple[int, int], others: Sequence[tuple[str, tuple[int, int]]]
) -> tuple[str, ...]:
    least = WORTH_A_NOTE * math.prod(size)
    large = [(name, other) for name, other in others if math.prod(other) >= least]
    if not large:
        return ()
    named = [f"{name} {w} x {h} px".strip() for name, (w, h) in large]
    return (
        f"the largest image of the file, {size[0]} x {size[1]} px, is read; left out: "
        f"{name_some(named, 3)}",
    )


# --- ImageJ and plain TIFF -------------------------------------------------------------------


def _choose_plain(file_name: str, tif: Any, pages: list[Any]) -> TiffImage:
    shown = [pages[0], *(p for p in pages[1:] if not int(p.subfiletype or 0) & MASK_BIT)]
    slides = [page for page in shown if not page.is_reduced] or shown
    slides = [page for page in slides if not _is_named_otherwise(page)] or slides
    base = max(slides, key=lambda page: page.imagewidth * page.imagelength)  # the first of equals
    alike = [page for page in slides if _size(page) == _size(base)]
    notes: tuple[str, ...] = ()
    planes: Sequence[Any] = [base]
    n_focal = 1
    if tif.is_imagej:
        planes, n_focal = _choose_imagej_planes(file_name, tif.imagej_metadata or {}, alike)
        notes = (_focal_note(n_focal),) if n_focal > 1 else ()
    elif len(alike) > 1:
        raise _several(file_name, alike)
    mpp = read_mpp(tif, base)
    if len(planes) == 3:
        levels = _colour_levels(file_name, planes)
        return TiffImage(tuple(levels), (), mpp, bool(tif.is_ome), n_focal, notes)
    base = planes[0]
    inside = _list(file_name, base.pages) if base.subifds else []
    rest = [page for page in shown if page is not base and page not in alike]
    pyramid = _stack_levels(base, inside + [page for page in rest if _is_copy(page, base)])
    left_out = [("", _size(page)) for page in rest if page in slides and page not in pyramid]
    notes += _note_others(_size(base), left_out)
    return TiffImage(
        levels=tuple((page,) for page in pyramid),
        copies=(*inside, *rest),
        mpp=mpp,
        is_ome=bool(tif.is_ome),
        n_focal=n_focal,
        notes=notes,
    )


def _is_named_otherwise(page: Any) -> bool:
    # Aperio and others name such pictures in the description's first lines.
    head = (page.description or "")[:200].splitlines()[:2]
    return any(re.match(r"\W*(label|macro)\b", line, re.IGNORECASE) for line in head)


def _choose_imagej_planes(
    file_name: str, metadata: dict[str, Any], alike: Sequence[Any]
) -> tuple[Sequence[Any], int]:
    """Choose the planes of the middle focal plane; returns them and how many there are."""
    n_c, n_z, n_t = (int(metadata.get(key) or 1) for key in ("channels", "slices", "frames"))
    labels = [str(label) for label in metadata.get("Labels") or ()]
    is_rgb_stack = n_z == 3 and len(labels) == 3 and any(labels) and _are_rgb_names(labels)
    if is_rgb_stack:
        n_c, n_z = 3, 1
    if n_t > 1:
        raise _time_series(file_name, n_t)
    if n_c * n_z != len(alike):
        if len(alike) == 1 and n_c * n_z == 1 and int(metadata.get("images") or 1) == 1:
            return alike, 1
        raise SeveralImagesError(
            f"{file_name}: an ImageJ stack of {metadata.get('images', n_c * n_z)} planes in "
            f"{len(alike)} TIFF images; save the plane that is the slide as a file of its own"
        )
    middle = n_z // 2
    planes = alike[n_c * middle : n_c * (middle + 1)]
    if n_c == 1 or is_rgb_stack:
        return planes, n_z
    lacks_colours = metadata.get("mode", "composite") == "grayscale"
    if n_c != 3 or lacks_colours or not _are_rgb_luts(metadata.get("LUTs")):
        names = labels if len(labels) == n_c else [f"channel {i + 1}" for i in range(n_c)]
        raise _not_rgb(file_name, n_c, names)
    return planes, n_z


def _are_rgb_luts(tables: Any) -> bool:
    """Whether ImageJ's look-up tables, (3, 256) each, are ramps of red, green and blue."""
    if tables is None:
        return True  # ImageJ's default for three channels
    if len(tables) < 3:
        return False
    return all(
        tuple(int(value) for value in table[:, -1]) == colour
        for table, colour in zip(tables, RGB, strict=False)
    )


# --- pyramids --------------------------------------------------------------------------------


def _stack_levels(base: Any, copies: Sequence[Any]) -> list[Any]:
    """Order the base and its smaller copies, the finest first, one of each size."""
    levels = [base]
    for page in sorted(copies, key=lambda page: -page.imagewidth):
        if page.imagewidth < levels[-1].imagewidth and _same_aspect(page, base):
            levels.append(page)
    return levels


def _colour_levels(file_name: str, planes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Pyramids of three planes, as far as all three have the same levels."""
    inside = [_list(file_name, page.pages) if page.subifds else [] for page in planes]
    pyramids = [_stack_levels(page, copies) for page, copies in zip(planes, inside, strict=True)]
    levels = []
    for pages in zip(*pyramids, strict=False):
        if len({_size(page) for page in pages}) > 1:
            break
        levels.append(pages)
    return levels


def _is_copy(page: Any, base: Any) -> bool:
    # Stated by the writer (NewSubfileType bit 0), else an exact power of two and the same layout.
    if page.is_reduced:
        return True
    power = round(math.log2(base.imagewidth / page.imagewidth))
    halved = all(
        abs(side / 2**power - copy) <= 1
        for side, copy in (
            (base.imagewidth, page.imagewidth),
            (base.imagelength, page.imagelength),
        )
    )
    return bool(power > 0 and halved and page.is_tiled == base.is_tiled)


def _same_aspect(page: Any, base: Any) -> bool:
    # A label or macro picture has another shape than the slide; rounding may cost a level 1 px.
    downsample = base.imagewidth / page.imagewidth
    difference = abs(base.imagelength / downsample - page.imagelength)
    return bool(difference <= 1 + page.imagelength / 100)


def _size(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


# --- notes and errors ------------------------------------------------------------------------


def _focal_note(n_z: int) -> str:
    if n_z == 1:
        return ""
    return f"a stack of {n_z} focal planes: the middle one, number {n_z // 2 + 1}, is read"


def _time_series(file_name: str, n_t: int) -> SeveralImagesError:
    return SeveralImagesError(
        f"{file_name}: a time series of {n_t} images; save the one that is the slide as a file of "
        "its own"
    )


def _not_rgb(file_name: str, n_channels: int, names: Sequence[str]) -> SeveralImagesError:
    return SeveralImagesError(
        f"{file_name}: {n_channels} channels ({name_some(names)}) that are not red, green and "
        "blue; convert the image to RGB, or save the channel that is needed as a file of its own"
    )


def _several(file_name: str, alike: Sequence[Any]) -> SeveralImagesError:
    width, height = _size(alike[0])
    return SeveralImagesError(
        f"{file_name}: holds {len(alike)} images of {width} x {height} pixels where one is needed "
        "(planes of colours, of a focal stack or of a time series, not specified in the file); "
        "save it as one RGB image, or the image that is needed as a file of its own"
    )
