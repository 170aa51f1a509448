"""The pixels of a store: neighbouring patches read as one block, each written to its place."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tiling.blocks import BlockSlide, block_side, group_tiles
from tiling.contracts import OnProgress, Slide, TileConfig, TileGeometry
from tiling.errors import SlideError
from tiling.patches import read_patch
from tiling.shards import ShardWriter
from tiling.store_files import TileTable, create_patches, shard_length
from tiling.threads import check_stopped, map_in_threads
from tiling.wording import pluralize

log = logging.getLogger(__name__)

WHITE = 255
SHOWN_ERRORS = 3  # of a slide's patches, as warnings


def write_pixels(
    folder: Path,
    slide: Slide,
    table: TileTable,
    geometry: TileGeometry,
    config: TileConfig,
    threads: int,
    on_progress: OnProgress | None,
) -> TileTable:
    """Write a store's patches block by block.

    Parameters
    ----------
    folder : Path
        The store, not yet there; with ``store: coords`` it gets no pixels.
    table : TileTable
    threads : int
        That read and write at a time.
    on_progress : function, optional
        Called with the number of patches written, and in all.

    Returns
    -------
    table : TileTable
        The patches that cannot be decoded are marked; they are white in the store.

    Raises
    ------
    SlideError
        If more of them cannot be decoded than `config` allows.
    """
    if config.store == "coords":
        folder.mkdir()
        return table
    n_patches = len(table.coords)
    create_patches(folder, n_patches=n_patches, patch_px=geometry.patch_px)
    writer = ShardWriter(
        folder / "patches",
        n_patches=n_patches,
        patch_bytes=3 * geometry.patch_px**2,
        shard_length=shard_length(n_patches, geometry.patch_px),
    )
    unreadable = table.unreadable.copy()
    white = np.full((geometry.patch_px, geometry.patch_px, 3), WHITE, np.uint8)

    log_error = _ErrorLog()

    def fill(rows: NDArray[np.int64]) -> int:
        block = cast("Slide", BlockSlide(slide, rows, coords=table.coords, geometry=geometry))
        for row in rows.tolist():
            check_stopped()
            x, y = table.coords[row].tolist()
            try:
                writer.write(row, read_patch(block, (x, y), geometry=geometry))
            except SlideError as error:
                writer.write(row, white)
                unreadable[row] = True
                log_error(error)
        return len(rows)

    groups = group_tiles(
        table.coords,
        tile_l0=(geometry.patch_l0, geometry.patch_l0_y),
        side_l0=block_side(slide, geometry),
    )
    done = 0
    for n_rows in map_in_threads(fill, groups, threads=threads, ahead=threads):
        done += n_rows
        if on_progress is not None:
            on_progress(done, n_patches)
        _check_unreadable(unreadable, config)
    writer.finish()
    return replace(table, unreadable=unreadable)


class _ErrorLog:
    """Logs the first errors as warnings and the rest at level debug."""

    def __init__(self) -> None:
        self._left = itertools.chain(
            [logging.WARNING] * SHOWN_ERRORS, itertools.repeat(logging.DEBUG)
        )

    def __call__(self, error: SlideError) -> None:
        log.log(next(self._left), "%s", error)


def _check_unreadable(unreadable: NDArray[np.bool_], config: TileConfig) -> None:
    # As soon as the whole slide's share is passed: no need to read the rest.
    n_bad, n_patches = int(unreadable.sum()), len(unreadable)
    if n_bad > config.max_unreadable * n_patches:
        raise SlideError(
            f"{n_bad} of {pluralize(n_patches, 'patch')} cannot be decoded, more than "
            f"max_unreadable={config.max_unreadable:g} allows; copy the file again from its source"
        )
