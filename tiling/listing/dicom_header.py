"""Attributes of a DICOM file that identify its slide, read from its header.

A whole-slide image is a *series* of files (instances): one for each level of the pyramid, and
others for the label, the overview and the thumbnail. The dataset's elements are sorted by tag and
those wanted come before the frames, so a few kilobytes are read of each file.

References
----------
.. [1] DICOM PS3.5, sections 7.1 to 7.5 (encoding of elements and sequences), annex A (transfer
   syntaxes); PS3.10, section 7.1 (file meta information); PS3.3, C.8.12.4 (whole-slide images).
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiling.files import check_file

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class: VL Whole Slide Microscopy Image
DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
_IMPLICIT = "1.2.840.10008.1.2"  # transfer syntaxes
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

_TRANSFER_SYNTAX, _MEDIA_CLASS = 0x00020010, 0x00020002
_IMAGE_TYPE, _CLASS, _INSTANCE = 0x00080008, 0x00080016, 0x00080018
_SERIES, _NUMBER = 0x0020000E, 0x00200013
_COLUMNS, _ROWS = 0x00480006, 0x00480007  # of the total pixel matrix
_WANTED = frozenset({_IMAGE_TYPE, _CLASS, _INSTANCE, _SERIES, _NUMBER, _COLUMNS, _ROWS})

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF  # length
_LONG = frozenset(  # value representations with a length of four bytes
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_MOST_BYTES = 1024  # of a value that is wanted
_BUFFER_BYTES = 2**16


@dataclass(frozen=True)
class DicomHeader:
    """What is known of one instance."""

    sop_class: str
    instance: str  # SOP instance UID
    series: str  # series instance UID
    image_type: tuple[str, ...]
    number: int  # instance number; 0 where it is missing
    size: tuple[int, int]  # (columns, rows) of the total pixel matrix; (0, 0) where it is missing

    @property
    def is_slide(self) -> bool:
        """Whether it is part of a whole-slide image."""
        return self.sop_class == WHOLE_SLIDE

    @property
    def is_level(self) -> bool:
        """Whether it is a level of the pyramid, not a label, an overview or a thumbnail."""
        return self.is_slide and self.image_type[2:3] == ("VOLUME",)


def read_dicom_header(path: Path) -> DicomHeader | None:
    """Read the attributes that identify the slide of a DICOM file; None for other files.

    What a damaged or unusual file (a deflated dataset) does not hold is empty.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    check_file(path)
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        if file.read(132)[128:] != b"DICM":
            return None
        meta = _read_elements(file, {_TRANSFER_SYNTAX, _MEDIA_CLASS}, "<", last=0x0002FFFF)
        syntax = _text(meta.get(_TRANSFER_SYNTAX, b""))
        order = ">" if syntax == _BIG_ENDIAN else "<"
        found = _read_elements(file, _WANTED, order, implicit=syntax == _IMPLICIT, last=_ROWS)
    sop_class = _text(found.get(_CLASS, b"")) or _text(meta.get(_MEDIA_CLASS, b""))
    return DicomHeader(
        sop_class=sop_class,
        instance=_text(found.get(_INSTANCE, b"")),
        series=_text(found.get(_SERIES, b"")),
        image_type=tuple(_text(found.get(_IMAGE_TYPE, b"")).split("\\")),
        number=_whole(_text(found.get(_NUMBER, b""))),
        size=(_long(found.get(_COLUMNS, b""), order), _long(found.get(_ROWS, b""), order)),
    )


def _read_elements(
    file: BinaryIO,
    wanted: frozenset[int] | set[int],
    order: str,
    *,
    implicit: bool = False,
    last: int,
) -> dict[int, bytes]:
    """Read the values of the tags wanted, up to the tag `last`; the file stays behind them."""
    found: dict[int, bytes] = {}
    while True:
        start = file.tell()
        element = _read_element(file, order, implicit)
        if element is None:
            return found
        tag, length = element
        if tag > last:
            file.seek(start)
            return found
        if length == _UNDEFINED:
            _skip_sequence(file, order, implicit)
        elif tag in wanted and length <= _MOST_BYTES:
            found[tag] = file.read(length)
        else:
            file.seek(length, 1)


def _read_element(file: BinaryIO, order: str, implicit: bool) -> tuple[int, int] | None:
    """Read an element up to its value: tag and length; None at the end of the file."""
    head = file.read(8)
    if len(head) < 8:
        return None
    group, element = struct.unpack(f"{order}HH", head[:4])
    tag = group << 16 | element
    kind = head[4:6]
    if implicit or group == 0xFFFE:  # items and delimiters have no value representation
        return tag, struct.unpack(f"{order}I", head[4:])[0]
    if kind not in _LONG:
        return tag, struct.unpack(f"{order}H", head[6:])[0]
    length = file.read(4)
    return (tag, struct.unpack(f"{order}I", length)[0]) if len(length) == 4 else None


def _skip_sequence(file: BinaryIO, order: str, implicit: bool) -> None:
    """Pass a sequence whose length is not given: up to its delimiter, whatever is nested in it."""
    depth = 1
    while depth:
        element = _read_element(file, order, implicit)
        if element is None:
            return
        tag, length = element
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
        elif length == _UNDEFINED:
            depth += 1
        else:
            file.seek(length, 1)


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _long(value: bytes, order: str) -> int:
    return int(struct.unpack(f"{order}I", value)[0]) if len(value) == 4 else 0
