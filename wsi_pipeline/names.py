"""The rule for names that become files and folders, checked when a name is read.

Slide and image ids, models, export formats and class names are used as file names and shown in
tables, pages and logs. A name that passes `check_name` is a single path component, is displayed
unchanged, and survives tools that trim or normalise names.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from wsi_pipeline.errors import ConfigError, PipelineError

# A file name takes 255 bytes on common file systems. Prefixes and suffixes take up to 46:
# ".NAME.patchnet.ome.tif" and the owner of a scratch file (`tiling.files.write_aside`).
MOST_BYTES = 200
_FILE_NAME_BYTES = 255
JOB_ARRAYS = "shards"  # folder in ``.state/<stage>/``, next to those of the models

# Reserved on Windows, with any suffix (Microsoft, "Naming Files, Paths, and Namespaces").
_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:\..*)?", re.I)

# Characters without width or ink that are not of the categories below (Unicode's
# Default_Ignorable_Code_Point): the combining grapheme joiner, fillers and their like.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
_VARIANTS = frozenset("\ufe0e\ufe0f")  # ask for a symbol's text or emoji form; keyboards add them
_CATEGORIES = {
    "Cc": "a control character",
    "Cf": "an invisible character",  # zero width, direction marks
    "Cs": "bytes that are not UTF-8",  # as Python holds them: lone surrogates
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}


@lru_cache(maxsize=2**16)  # each unit of work is checked, and has the name of a slide
def find_name_problem(name: str) -> str:
    """Find out why a name is not valid for a file or folder.

    Returns
    -------
    reason : str
        Empty if the name is valid.

    Examples
    --------
    >>> find_name_problem("tumor_001"), find_name_problem("../evil")
    ('', "it contains '/'")
    """
    if not name:
        return "it is empty"
    reason = "".join(f"'{c}'" for c in "/\\" if c in name) or find_text_problem(name)
    if reason:
        return f"it contains {reason}"
    if name != name.strip():
        return "it begins or ends with a space"
    if name.startswith("."):
        return "it begins with '.'"
    if name.endswith("."):
        return "it ends with '.'"
    if _DEVICES.fullmatch(name):
        return "Windows reserves it for a device"
    n_bytes = len(name.encode())
    if n_bytes > MOST_BYTES:
        return f"it takes {n_bytes} bytes, more than {MOST_BYTES}"
    return ""


def find_text_problem(text: str) -> str:
    """Find the first character of a text that would be invisible or lost.

    Returns
    -------
    found : str
        Description of the character; empty if there is none.

    Examples
    --------
    >>> find_text_problem("patient 1"), find_text_problem("patient\\n1")
    ('', 'a control character (\\\\n)')
    """
    return next(filter(None, map(_find_character_problem, text)), "")


def _find_character_problem(character: str) -> str:
    code = ord(character)
    if character in _BLANK or 0xFE00 <= code <= 0xFE0D or 0xE0000 <= code <= 0xE0FFF:
        return f"an invisible character ({printable(character)})"
    if 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
        return f"a code that is not a character (U+{code:04X})"
    kind = _CATEGORIES.get(unicodedata.category(character))
    return f"{kind} ({printable(character)})" if kind else ""


def check_name(
    name: str,
    what: str,
    *,
    remedy: str = "choose another name",
    error: type[PipelineError] = ConfigError,
) -> str:
    """Return a name if it is valid for a file or folder; refuse it otherwise.

    Parameters
    ----------
    name : str
    what : str
        What it names, for the message: "slide_id", "train: model".
    remedy : str
        Advice for a name that is refused.
    error : type
        Kind of the error.

    Raises
    ------
    error
        With the name, the reason and the remedy.
    """
    reason = find_name_problem(name)
    if reason:
        raise error(f"{what} '{shorten(name)}' is not a valid name: {reason}; {remedy}")
    return name


def check_model_name(
    name: str,
    what: str,
    *,
    remedy: str = "choose another name",
    error: type[PipelineError] = ConfigError,
) -> str:
    """Return a name if it is valid for a model; refuse it otherwise, like `check_name`.

    Raises
    ------
    error
        Also for a name that run folders use next to those of the models.
    """
    if name == JOB_ARRAYS:
        raise error(f"{what} '{name}' is reserved for the job arrays of a run folder; {remedy}")
    return check_name(name, what, remedy=remedy, error=error)


def name_key(name: str) -> str:
    """Reduce a name to what file systems compare: names with equal keys can be one file.

    macOS and Windows ignore case, and macOS does not distinguish composed from decomposed letters.

    Examples
    --------
    >>> name_key("Tumor_1") == name_key("tumor_1"), name_key("a") == name_key("b")
    (True, False)
    """
    letters = (_fold(c) for c in unicodedata.normalize("NFD", name) if c not in _VARIANTS)
    return unicodedata.normalize("NFC", "".join(letters))


def _fold(character: str) -> str:
    folded = character.casefold()
    return folded if len(folded) == 1 else character.lower()


def find_twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Find two names that are the same on some file systems; None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name_key(name), name)
        if other != name:
            return other, name
    return None


def check_twins(
    names: Iterable[str],
    what: str,
    *,
    remedy: str = "rename one of them",
    error: type[PipelineError] = ConfigError,
) -> None:
    """Refuse names that differ only in case or in the way an accent is encoded.

    Raises
    ------
    error
        With both names.
    """
    twins = find_twins(names)
    if twins:
        raise error(f"{what} '{twins[0]}' and '{twins[1]}' {describe_twins(*twins)}; {remedy}")


def describe_twins(one: str, other: str) -> str:
    """Describe how two names with the same key differ."""
    composed = [unicodedata.normalize("NFC", name) for name in (one, other)]
    if composed[0] == composed[1]:
        return "differ only in how accents are encoded (NFC, NFD)"
    return "differ only in upper and lower case"


def propose_name(name: str) -> str:
    """Turn an invalid name into a valid one that resembles it.

    Examples
    --------
    >>> propose_name(" a/b "), propose_name("tumor_001")
    ('a_b', 'tumor_001')
    """
    kept = "".join("_" if c in "/\\" or _find_character_problem(c) else c for c in name.strip())
    kept = kept.strip().strip(".").strip() or "slide"
    if _DEVICES.fullmatch(kept):
        kept = f"slide_{kept}"
    return kept if len(kept.encode()) <= MOST_BYTES else _cut(kept, MOST_BYTES)


def fit_file_name(parts: Sequence[str], suffix: str) -> str:
    """Join parts into a file name that is short enough for the file system.

    Examples
    --------
    >>> fit_file_name(["tile", "slide", "s1"], ".log")
    'tile-slide-s1.log'
    """
    stem, most = "-".join(parts), _FILE_NAME_BYTES - 46 - len(suffix.encode())
    return (stem if len(stem.encode()) <= most else _cut(stem, most)) + suffix


def _cut(name: str, most_bytes: int) -> str:
    """Shorten a name; a digest distinguishes names with the same beginning."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    head = name.encode()[: most_bytes - len(digest) - 1].decode(errors="ignore")
    return f"{head.rstrip(' .')}-{digest}"


def printable(text: str) -> str:
    """Show text on one line, with escapes for characters that have no glyph or move others.

    Examples
    --------
    >>> printable("a\\nb"), printable("caf\\udce9")
    ('a\\\\nb', 'caf\\\\xe9')
    """
    return "".join(_escape(c) if _is_unprintable(c) else c for c in text)


def _is_unprintable(character: str) -> bool:
    return character in _BLANK or unicodedata.category(character) in _CATEGORIES


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def shorten(text: str, most: int = 80) -> str:
    """Show a name in a message: on one line, truncated if it is very long."""
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def check_listed(name: str, listed: Iterable[str], kind: str) -> None:
    """Refuse what is not in a list, for example of formats.

    Raises
    ------
    ConfigError
        Naming those that are.
    """
    if name not in listed:
        raise ConfigError(f"no {kind} is called '{name}'; known: {', '.join(listed)}")
