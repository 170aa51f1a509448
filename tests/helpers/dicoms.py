"""Tiny DICOM whole-slide images for tests, written element by element (PS3.5, explicit VR)."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.helpers.slides import halve, tissue

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
ROOT = "1.2.826.0.1.3680043.8.498"
_LONG = {"OB", "OW", "SQ", "UN", "UT"}
_SIDE = 64  # px of a frame

Elements = dict[int, tuple[str, object]]


def element(tag: int, kind: str, value: object, *, syntax: str = EXPLICIT) -> bytes:
    """One element; a sequence is a list of items, each a dict of elements."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    if kind == "SQ":
        body = b"".join(_item(item, syntax) for item in value)  # type: ignore[attr-defined]
        data = body + struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0)
        length = 0xFFFFFFFF
    else:
        data = _encode(kind, value, order)
        length = len(data)
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack(f"{order}I", length) + data
    if kind in _LONG:
        return head + kind.encode() + struct.pack(f"{order}HI", 0, length) + data
    return head + kind.encode() + struct.pack(f"{order}H", length) + data


def _item(elements: Elements, syntax: str) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    body = dataset(elements, syntax=syntax)
    end = struct.pack(f"{order}HHI", 0xFFFE, 0xE00D, 0)
    return struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + body + end


def _encode(kind: str, value: object, order: str) -> bytes:
    if kind == "US":
        return struct.pack(f"{order}H", value)
    if kind == "UL":
        return struct.pack(f"{order}I", value)
    if kind == "FL":
        return struct.pack(f"{order}f", value)
    data = value if isinstance(value, bytes) else str(value).encode("ascii")
    pad = b"\0" if kind in ("UI", "OB", "OW", "UN") else b" "
    return data + pad * (len(data) % 2)


def dataset(elements: Elements, *, syntax: str = EXPLICIT) -> bytes:
    return b"".join(element(t, k, v, syntax=syntax) for t, (k, v) in sorted(elements.items()))


def write_elements(path: Path, elements: Elements, *, syntax: str = EXPLICIT) -> Path:
    """A DICOM file of any elements."""
    meta: Elements = {
        0x00020001: ("OB", b"\0\1"),
        0x00020002: ("UI", elements.get(0x00080016, ("UI", ""))[1]),
        0x00020003: ("UI", elements.get(0x00080018, ("UI", ""))[1]),
        0x00020010: ("UI", syntax),
        0x00020012: ("UI", f"{ROOT}.1"),
    }
    body = dataset(meta)
    group = element(0x00020000, "UL", len(body))
    path.write_bytes(bytes(128) + b"DICM" + group + body + dataset(elements, syntax=syntax))
    return path


def describe_instance(
    *,
    series: str,
    instance: str,
    number: int = 1,
    kind: str = "VOLUME",
    size: tuple[int, int] = (128, 128),
    sop_class: str = WHOLE_SLIDE,
) -> Elements:
    """What the head of an instance holds; nested sequences among it."""
    code: Elements = {0x00080100: ("SH", "1"), 0x00080102: ("SH", "SCT"), 0x00080104: ("LO", "x")}
    specimen: Elements = {
        0x00400551: ("LO", "specimen"),
        0x00400560 + 0x94: ("SQ", [code]),  # nested once more
    }
    return {
        0x00080008: ("CS", f"ORIGINAL\\PRIMARY\\{kind}\\NONE"),
        0x00080016: ("UI", sop_class),
        0x00080018: ("UI", instance),
        0x00080060: ("CS", "SM"),
        0x0020000D: ("UI", f"{ROOT}.7"),
        0x0020000E: ("UI", series),
        0x00200013: ("IS", number),
        0x00200052: ("UI", f"{ROOT}.8"),
        0x00209311: ("CS", "TILED_FULL"),
        0x00400560: ("SQ", [specimen]),
        0x00480006: ("UL", size[0]),
        0x00480007: ("UL", size[1]),
    }


def write_instance(
    path: Path, pixels: NDArray[np.uint8], *, mpp: float, series: str, instance: str, **more: object
) -> Path:
    """An instance with pixels, as OpenSlide reads it."""
    height, width = pixels.shape[:2]
    columns, rows = -(-width // _SIDE), -(-height // _SIDE)
    padded = np.full((rows * _SIDE, columns * _SIDE, 3), 255, np.uint8)
    padded[:height, :width] = pixels
    frames = padded.reshape(rows, _SIDE, columns, _SIDE, 3).swapaxes(1, 2)
    spacing: Elements = {0x00280030: ("DS", f"{mpp / 1000:.6f}\\{mpp / 1000:.6f}")}
    about = describe_instance(
        series=series,
        instance=instance,
        size=(width, height),
        **more,  # type: ignore[arg-type]
    )
    image: Elements = {
        0x00280002: ("US", 3),
        0x00280004: ("CS", "RGB"),
        0x00280006: ("US", 0),
        0x00280008: ("IS", rows * columns),
        0x00280010: ("US", _SIDE),
        0x00280011: ("US", _SIDE),
        0x00280100: ("US", 8),
        0x00280101: ("US", 8),
        0x00280102: ("US", 7),
        0x00280103: ("US", 0),
        0x52009229: ("SQ", [{0x00289110: ("SQ", [spacing])}]),
        0x7FE00010: ("OB", frames.tobytes()),
    }
    return write_elements(path, about | image)


def write_series(folder: Path, *, seed: int = 0, levels: int = 3, suffix: str = ".dcm") -> Path:
    """A slide of several files in a folder; returns that of the finest level.

    The files' names do not reveal the order of the levels.
    """
    folder.mkdir(exist_ok=True)
    series, pixels, mpp = f"{ROOT}.{seed}.99", tissue(420, 340, seed=seed), 0.5
    finest = folder
    for level in range(levels):
        instance = f"{ROOT}.{seed}.{(level * 7 + 5) % 11}"
        path = folder / f"{instance}{suffix}"
        write_instance(
            path, pixels, mpp=mpp * 2**level, series=series, instance=instance, number=9 - level
        )
        finest = path if level == 0 else finest
        pixels = halve(pixels)
    return finest
