"""The marks of a run by their names alone, from one pass over their folders.

`collect` and `status` ask for the state of every unit of every stage. The names under ``.state/``
answer that without opening a file, or asking the file system once for each unit.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import JOB_ARRAYS, find_name_problem

_KINDS = (".done.json", ".failed.json", ".earlier.json")


@dataclass
class MarkFolder:
    """Names of the units in one folder of marks."""

    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    earlier: set[str] = field(default_factory=set)  # being rebuilt, or that failed
    has_files: bool = False  # any JSON, also what a stage was asked to do


@dataclass(frozen=True)
class MarkIndex:
    """Which units are marked as finished or failed."""

    folders: dict[tuple[str, ...], MarkFolder]  # by path below ``.state/``

    def is_marked(self, unit: Unit) -> bool:
        """Whether a unit was finished, up to date or not."""
        return unit.name in self.of(unit.stage, unit.variant, unit.model).done

    def of(self, stage: str, variant: str = "", model: str = "") -> MarkFolder:
        """Return the folder of a stage, and of a variant and a model where it has them."""
        return self.folders.get(tuple(filter(None, (stage, variant, model))), _EMPTY)

    def below(self, stage: str) -> Iterator[tuple[tuple[str, ...], MarkFolder]]:
        """Yield the folders in that of a stage: their path in it, and their marks."""
        for path, folder in sorted(self.folders.items()):
            names = path[1:]
            is_ours = names and names[0] != JOB_ARRAYS and not any(map(find_name_problem, names))
            if path[0] == stage and is_ours:
                yield names, folder


_EMPTY = MarkFolder()


def index_marks(run: RunFolder, stages: Iterable[str]) -> MarkIndex:
    """List the marks of some stages, each folder once; marks may be written meanwhile."""
    folders: dict[tuple[str, ...], MarkFolder] = {}
    state = run.path / ".state"
    waiting: list[tuple[str, ...]] = [(stage,) for stage in stages]
    while waiting:
        path = waiting.pop()
        folders[path] = folder = MarkFolder()
        try:
            with os.scandir(Path(state, *path)) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append((*path, entry.name))
                    else:
                        _add(folder, entry.name)
        except FileNotFoundError:  # not begun
            del folders[path]
    return MarkIndex(folders)


def _add(folder: MarkFolder, name: str) -> None:
    folder.has_files |= name.endswith(".json")
    for suffix, names in zip(_KINDS, (folder.done, folder.failed, folder.earlier), strict=True):
        if name.endswith(suffix) and not name.startswith("."):
            names.add(name.removesuffix(suffix))
