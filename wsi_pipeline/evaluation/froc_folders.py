"""Which file of a folder is which slide's; no file is dropped without being named.

A folder holds one file for each slide. Files of other kinds are named in a note; one that is named
after a slide which has no other file is an error, since the slide would count as one without.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tiling.wording import name_some
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.slide_names import SlideIndex, list_ids

_SHOWN = 20  # names in one message


@dataclass(frozen=True)
class FolderFiles:
    """The entries of a folder, by whether their kind can be read."""

    folder: Path
    readable: str  # which kinds can be read, in words
    is_reference: bool
    files: tuple[tuple[str, Path], ...]  # (name without its suffix, path)
    others: tuple[Path, ...]

    def by_slide(
        self, index: SlideIndex, *, add_new: bool = False
    ) -> tuple[dict[str, Path], list[Path]]:
        """Find the slide of each file.

        Parameters
        ----------
        add_new : bool
            Whether files of no slide of the index are of further slides, which are added.

        Returns
        -------
        path_by_slide : slide_id -> path
        unmatched : list of Path
            Files of no slide that the index had.

        Raises
        ------
        EvaluationError
            If two files belong to one slide.
        """
        found: dict[str, Path] = {}
        unmatched = []
        for name, path in self.files:
            ids = list_ids(name, is_reference=self.is_reference)
            slide_id = index.find(ids)
            if slide_id is None:
                unmatched.append(path)
                if not add_new:
                    continue
                slide_id = ids[-1]
                index.add(slide_id, ids, path.name)
            elif slide_id in found:
                what = "two references" if self.is_reference else "two files of detections"
                raise EvaluationError(
                    f"slide {slide_id} has {what}, {found[slide_id].name} and {path.name} in "
                    f"{self.folder}; keep the one that is right"
                )
            found[slide_id] = path
        return found, unmatched

    def check_others(
        self, index: SlideIndex, without: Collection[str], read: Collection[Path]
    ) -> list[str]:
        """Name the entries that were not read.

        Parameters
        ----------
        without : slide ids
            Slides that have no file here and should have one if there is any.
        read : paths, resolved
            What was read as something else.

        Returns
        -------
        notes : list of sentences
            At most one.

        Raises
        ------
        EvaluationError
            If such an entry is named after one of these slides.
        """
        others = [path for path in self.others if path.resolve() not in read]
        for path in others:
            slide_id = index.find(_all_ids(path.name, is_reference=self.is_reference))
            if slide_id in without and not _is_clutter(path):
                what = "no reference" if self.is_reference else "no detections"
                raise EvaluationError(
                    f"{path}: named after slide {slide_id}, which has {what}, but "
                    f"{_describe(path)} ({self.readable} can); convert it, or rename it if it is "
                    "something else"
                )
        if not others:
            return []
        names = name_some([path.name + "/" * path.is_dir() for path in others], _SHOWN)
        return [f"ignored in {self.folder}: {names} ({self.readable} are read, and no subfolders)"]


def list_files(
    folder: Path, kinds: tuple[str, ...], *, readable: str, is_reference: bool
) -> FolderFiles:
    """List a folder; subfolders are not searched.

    Parameters
    ----------
    kinds : suffixes that can be read, lower case, the longest first
    readable : str
        The same in words, for messages.
    is_reference : bool
        Whether names may have the endings of masks.

    Raises
    ------
    EvaluationError
        If there is no such folder, or the name of an entry is not UTF-8.
    """
    if not folder.is_dir():
        what = "is a file, give the folder that holds it" if folder.exists() else "no such folder"
        raise EvaluationError(f"{folder}: {what}")
    files, others = [], []
    for path in sorted(folder.iterdir()):
        _check_name(path)
        suffix = next((k for k in kinds if path.name.lower().endswith(k)), None)
        if suffix is None or _is_clutter(path) or not path.is_file():
            others.append(path)
        else:
            files.append((path.name[: -len(suffix)], path))
    return FolderFiles(folder, readable, is_reference, tuple(files), tuple(others))


def _check_name(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise EvaluationError(
            f"{path.parent}: the file name {path.name.encode(errors='surrogateescape')!r} is not "
            "UTF-8; rename it"
        ) from error


def _is_clutter(path: Path) -> bool:
    """Whether an entry is hidden, or one that file managers leave behind."""
    return path.name.startswith((".", "~$")) or path.name.lower() in ("thumbs.db", "desktop.ini")


def _all_ids(name: str, *, is_reference: bool) -> list[str]:
    """What a file of unknown kind may be named after: its name with fewer and fewer suffixes."""
    ids = []
    while True:
        ids += list_ids(name, is_reference=is_reference)
        shorter = Path(name).stem
        if shorter == name:
            return ids
        name = shorter


def _describe(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "it is a link to a file that is not there and cannot be read"
    if path.is_dir():
        return "it is a folder, which cannot be read"
    if not path.is_file():
        return "it is not a regular file and cannot be read"
    return f"files ending in '{path.suffix}' cannot be read"
