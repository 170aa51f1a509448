"""Which slide a file or a row belongs to, by its name.

Detections, references and lists of slides come from different programs, which name one slide in
different ways: ``Test_001.csv``, ``test_001_Mask.tif``, ``Test_001.ome.tif``, ``Test_001.tif.csv``,
``slides/Test_001.svs``. A name is compared without regard to case and Unicode form; what the name
holds is tried first, then the name without the endings that files of slides and masks are known to
have. Nothing else is guessed.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from tiling.listing.slide_files import slide_suffixes
from wsi_pipeline.errors import EvaluationError

# ``_mask`` and ``_evaluation_mask`` (CAMELYON16, CAMELYON17, ASAP), in any case.
_MASK_ENDING = re.compile(r"[_.\- ](evaluation[_.\- ])?masks?$", re.IGNORECASE)


def fold_name(name: str) -> str:
    """Bring a name into the form in which names are compared.

    Examples
    --------
    >>> fold_name("Test_001") == fold_name(" test_001")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def list_ids(name: str, *, is_reference: bool = False) -> list[str]:
    """List the slide ids that a name may mean, the most literal first.

    Parameters
    ----------
    name : str
        Of a file without the suffix of its format, or as a table has it; folders are dropped.
    is_reference : bool
        Whether the endings of mask files are dropped as well.

    Examples
    --------
    >>> list_ids("slides/Test_001.ome.tif")
    ['Test_001.ome.tif', 'Test_001.ome', 'Test_001']
    >>> list_ids("Test_001_Mask", is_reference=True)
    ['Test_001_Mask', 'Test_001']
    """
    slide_ending = _slide_ending(slide_suffixes())
    ids = [PurePosixPath(name.replace("\\", "/")).name.strip() or name]
    endings = (slide_ending, _MASK_ENDING) if is_reference else (slide_ending,)
    while True:
        shorter = next((s for e in endings if (s := e.sub("", ids[-1])) != ids[-1]), "")
        if not shorter:
            return ids
        ids.append(shorter)


@functools.cache
def _slide_ending(suffixes: frozenset[str]) -> re.Pattern[str]:
    return re.compile(rf"({'|'.join(map(re.escape, sorted(suffixes)))}|\.ome)$", re.IGNORECASE)


class SlideIndex:
    """The slides of an evaluation, found by any name they go by."""

    def __init__(self) -> None:
        self._by_key: dict[str, str] = {}
        self._origin: dict[str, str] = {}

    @property
    def slide_ids(self) -> list[str]:
        """All slides, in the order in which they were added."""
        return list(self._origin)

    def add(self, slide_id: str, ids: Sequence[str], origin: str) -> None:
        """Add a slide.

        Parameters
        ----------
        slide_id : str
            What it is called in what is written.
        ids : sequence of str
            All names it goes by: see `list_ids`.
        origin : str
            Where the name was found, for the message.

        Raises
        ------
        EvaluationError
            If a slide that is there already goes by one of the names.
        """
        for key in map(fold_name, ids):
            other = self._by_key.setdefault(key, slide_id)
            if other != slide_id or slide_id in self._origin:
                raise EvaluationError(
                    f"{self._origin[other]} and {origin} name the same slide, '{ids[-1]}' (case, "
                    "slide suffixes and the ending _mask make no difference); keep one of them, or "
                    "rename one"
                )
        self._origin[slide_id] = origin

    def find(self, ids: Iterable[str]) -> str | None:
        """Find the slide that goes by one of the names, the first that is known."""
        return next((s for i in ids if (s := self._by_key.get(fold_name(i))) is not None), None)
