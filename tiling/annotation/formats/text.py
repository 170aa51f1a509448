"""Annotation files as text, whatever encoding the tool wrote them in.

ImageScope and many scripts on Windows write the code page of their computer without declaring it,
.NET writes UTF-16, and some editors put a byte order mark before UTF-8.
"""

import codecs
import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from tiling.errors import AnnotationError
from tiling.files import check_file

JSON_SUFFIXES = (".geojson", ".json")
MAX_BYTES = 1 << 29  # unpacked; the largest CAMELYON16 annotation has 3 MB

# UTF-32 before UTF-16: the mark of UTF-16, little endian, begins that of UTF-32.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Which of the first four bytes are zero where the first characters are ASCII (RFC 4627, section 3).
ZERO_BYTES = {
    (True, True, True, False): "utf-32-be",
    (False, True, True, True): "utf-32-le",
    (True, False, True, False): "utf-16-be",
    (False, True, False, True): "utf-16-le",
}
XML_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][\w.-]*)["']""")
CODE_PAGE_NOTE = (
    "read as Windows-1252, as it is not UTF-8: check names with accents, or save it as UTF-8"
)


def read_bytes(path: Path) -> bytes:
    """Read an annotation file, unpacked, up to `MAX_BYTES`.

    Raises
    ------
    AnnotationError
        If it cannot be read, is empty or too large.
    """
    opener = gzip.open if path.suffix.lower() == ".gz" else Path.open
    try:
        check_file(path)
        with opener(path, "rb") as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AnnotationError(f"cannot be read ({reason}); check the path and the file") from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(
            f"holds more than {MAX_BYTES >> 20} MiB, too much for the annotation of one slide; "
            "check the file"
        )
    if not data.strip():
        raise AnnotationError(
            "is empty (0 bytes of content); export it again, or leave the manifest's annotation "
            "column empty for a slide without one"
        )
    return data


def decode_text(data: bytes, *, declared: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Decode the bytes of a text file.

    A byte order mark decides; then the zero bytes of UTF-16 or UTF-32; then the declared encoding;
    then UTF-8. Whatever is none of these is read as Windows-1252.

    Parameters
    ----------
    data : bytes
    declared : str, optional
        Encoding that the file declares.

    Returns
    -------
    text : str
        Without a byte order mark.
    notes : sentences
        Not empty where the encoding is a guess.

    Examples
    --------
    >>> decode_text("é".encode("utf-16"))
    ('é', ())
    >>> decode_text(b"\\xe9")[0]
    'é'
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace"), ()
    zeros = tuple(byte == 0 for byte in data[:4])
    if zeros in ZERO_BYTES:
        return data.decode(ZERO_BYTES[zeros], errors="replace"), ()
    # Without zero bytes it is not UTF-16, whatever it declares: .NET declares UTF-16 on UTF-8.
    named = declared if declared and not re.match(r"utf-?(16|32)", declared, re.I) else None
    for candidate in (named, "utf-8"):
        decoded = _try_decode(data, candidate) if candidate else None
        if decoded is not None:
            return decoded, ()
    return data.decode("cp1252", errors="replace"), (CODE_PAGE_NOTE,)


def declared_encoding(data: bytes) -> str | None:
    """Find the encoding that an XML declaration names; None if it names none."""
    found = XML_ENCODING.match(data[:1024])
    return found[1].decode("ascii") if found else None


def _try_decode(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (LookupError, UnicodeError):  # not a text encoding, or another one
        return None


def parse_json(data: bytes) -> tuple[Any, tuple[str, ...]]:
    """Parse JSON of any encoding.

    Returns
    -------
    content : what the file holds
    notes : sentences
        Not empty where the encoding is a guess.

    Raises
    ------
    AnnotationError
        If it is not well-formed.
    """
    text, notes = decode_text(data)
    try:
        return json.loads(text), notes
    except ValueError as error:
        raise AnnotationError(
            f"is not well-formed JSON ({error}); it is damaged or cut short: export it again"
        ) from error
