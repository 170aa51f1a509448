"""Which slides of a run are tiled, and their patch stores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tiling.errors import StoreError
from tiling.wording import name_some, pluralize
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.state import check_unit, iterate_failures

if TYPE_CHECKING:
    from tiling.store import PatchStore


def finished_entries(
    run: RunFolder, entries: Sequence[SlideEntry], splits: Sequence[str | None] | None = None
) -> list[SlideEntry]:
    """Choose the slides that have a patch store and are in one of `splits` (None: in any)."""
    entries = [e for e in entries if splits is None or e.split in splits]
    tiled = [e for e in entries if Unit("tile", e.slide_id).is_marked(run)]
    failed = {row["slide_id"] for row in iterate_failures(run) if row["stage"] == "tile"}
    done = {e.slide_id for e in tiled} | failed
    waiting = [e.slide_id for e in entries if e.slide_id not in done]
    if waiting:
        raise StageError(
            f"not tiled yet: {len(waiting)} of {pluralize(len(entries), 'slide')}: "
            f"{name_some(waiting)}; run: wsi-pipeline tile INPUT --out {run.path} "
            "(see also: wsi-pipeline collect)"
        )
    if not tiled:
        where = f" in split {' or '.join(s or '(none)' for s in splits)}" if splits else ""
        raise StageError(
            f"{run.path}: no tiled slide{where}; fill the split column of the manifest (or set "
            "splits in the config) and run tile again"
        )
    return tiled


def digest_store(run: RunFolder, entry: SlideEntry) -> str:
    """Return the digest of what a slide's patch store was made from, once its files are verified.

    Raises
    ------
    StoreError
        If the store is missing, unfinished, or not as the stage tile wrote it.
    """
    from tiling.store import PatchStore
    from tiling.store_files import stored_fingerprint

    path = run.store(entry.slide_id)
    store = path.relative_to(run.path).as_posix()
    if problems := check_unit(run, Unit("tile", entry.slide_id), [store]):
        raise StoreError(f"{'; '.join(map(str, problems))}; run tile again")
    # Opening an incomplete store raises the reason.
    return stored_fingerprint(path) or PatchStore.open(path).fingerprint


def open_store(run: RunFolder, entry: SlideEntry, *, random: bool = False) -> "PatchStore":
    """Open a slide's patch store; where it keeps no pixels, they come from the slide.

    Parameters
    ----------
    random : bool
        Patches will be drawn at random (`tiling.store.PatchStore.open`).
    """
    from tiling.store import PatchStore

    return PatchStore.open(
        run.store(entry.slide_id),
        slide_path=entry.path,
        content_cache=run.content(entry.slide_id),
        random=random,
    )
