"""Which tiles of a slide become patches, and with which labels; no patch is read for it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.annotation.labels import label_tiles
from tiling.annotation.slide_annotation import note_unhit_lesions, read_slide_annotation
from tiling.contracts import Annotation, Slide, SlideInfo, TileConfig, TileGeometry
from tiling.coords_hdf5 import take_coords
from tiling.errors import PatchSizeError, TissueError, naming_file
from tiling.geometry import resolve_geometry
from tiling.grid import TileGrid, lay_grid
from tiling.listing.content import UNREAD
from tiling.overview import Overview
from tiling.slide import describe_slide, note_slide
from tiling.store_files import TileTable
from tiling.tissue.slide_tissue import SlideTissue, explain_no_tissue, find_tissue, tissue_meter
from tiling.wording import format_percent

TILES_AT_ONCE = 2**18  # placed and measured: more need more memory and are not faster


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a slide, chosen and labelled."""

    info: SlideInfo
    geometry: TileGeometry
    mask: SlideTissue
    table: TileTable
    n_tiles: int  # of the whole grid
    annotation: Annotation | None
    slide_label: int | None
    notes: tuple[str, ...]


def plan_tiles(
    slide: Slide,
    slide_path: Path,
    *,
    slide_id: str,
    config: TileConfig,
    annotation_path: Path | None = None,
    slide_label: int | None = None,
    mpp: float | None = None,
    content: str = UNREAD,
    threads: int = 1,
) -> TilePlan:
    """Choose and label an open slide's tiles, as `tile_slide` does; the table may be empty.

    Other parameters and the errors are those of `tile_slide`; see also `check_has_tiles`.

    Parameters
    ----------
    content : str, optional
        Digest of the slide's files; not needed for a plan that is not carried out.
    """
    info = describe_slide(slide, path=slide_path, slide_id=slide_id, mpp=mpp, content=content)
    geometry = resolve_geometry(config, slide_mpp=info.mpp)
    if config.coords is None:
        grid = _lay_grid(info, geometry, config)
        n_tiles, tiles = len(grid), grid.iterate(most=TILES_AT_ONCE)
    else:
        coords = take_coords(config.coords, info, geometry)
        n_tiles = len(coords)
        tiles = (coords[i : i + TILES_AT_ONCE] for i in range(0, n_tiles, TILES_AT_ONCE))
    notes = note_slide(slide, mpp=mpp)
    annotation, drawn = read_slide_annotation(annotation_path, info, config)
    notes += drawn
    mask = find_tissue(slide, info, config, threads)
    notes += mask.notes + _overview_note(mask.overview)
    table = _choose_tiles(tiles, mask, geometry, config)
    if len(table.coords):
        table = _label(table, geometry, annotation, annotation_path, slide_label, config)
        notes += note_unhit_lesions(table, annotation)
    return TilePlan(info, geometry, mask, table, n_tiles, annotation, slide_label, notes)


def check_has_tiles(plan: TilePlan, config: TileConfig) -> None:
    """Refuse a plan without any tile.

    Raises
    ------
    TissueError
    """
    if not len(plan.table.coords):
        grid = _lay_grid(plan.info, plan.geometry, config)

        def fullest(mask: SlideTissue) -> float:
            measure = tissue_meter(mask, plan.geometry)
            tiles = grid.iterate(most=TILES_AT_ONCE)
            return max((float(measure(group).max(initial=0)) for group in tiles), default=0.0)

        raise TissueError(
            explain_no_tissue(plan.mask, plan.info, config, n_tiles=plan.n_tiles, fullest=fullest)
        )


def _lay_grid(info: SlideInfo, geometry: TileGeometry, config: TileConfig) -> TileGrid:
    tile_l0 = (geometry.patch_l0, geometry.patch_l0_y)
    grid = lay_grid(
        info.size,
        tile_l0=tile_l0,
        stride_l0=(geometry.stride_l0, geometry.stride_l0_y),
        edge=config.edge,
    )
    if not len(grid):
        raise PatchSizeError(
            f"the slide has {info.size[0]} x {info.size[1]} level-0 pixels, too few for one tile "
            f"of {tile_l0[0]} x {tile_l0[1]} (patch_px={config.patch_px} at "
            f"target_mpp={config.target_mpp:g})",
            "use a smaller tile.patch_px, or tile.edge=pad",
            "use --set tile.edge=pad, or leave the slide out",
        )
    return grid


def _choose_tiles(
    tiles: Iterable[NDArray[np.int64]],
    mask: SlideTissue,
    geometry: TileGeometry,
    config: TileConfig,
) -> TileTable:
    """Keep the tiles with tissue, group by group: a whole grid may be larger than the memory."""
    measure = tissue_meter(mask, geometry)
    coords, tissue = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for group in tiles:
        fraction = measure(group)
        if config.coords is None:
            kept = fraction >= config.tissue.min_fraction  # 0 keeps every tile
        else:  # the other tool has chosen
            kept = np.ones(len(group), np.bool_)
        coords.append(group[kept])
        tissue.append(fraction[kept])
    n_kept = sum(map(len, tissue))
    return TileTable(
        coords=np.concatenate(coords),
        tissue=np.concatenate(tissue),
        label=np.full(n_kept, -1, np.int8),
        tumour=np.zeros(n_kept, np.float32),
        unreadable=np.zeros(n_kept, np.bool_),
        lesion_pairs=np.zeros((0, 2), np.int64),
    )


def _label(
    table: TileTable,
    geometry: TileGeometry,
    annotation: Annotation | None,
    annotation_path: Path | None,
    slide_label: int | None,
    config: TileConfig,
) -> TileTable:
    with naming_file(annotation_path):
        labels = label_tiles(
            table.coords,
            geometry=geometry,
            annotation=annotation,
            slide_label=slide_label,
            config=config,
        )
    return replace(
        table, label=labels.label, tumour=labels.tumour, lesion_pairs=labels.lesion_pairs
    )


def _overview_note(overview: Overview) -> tuple[str, ...]:
    share = overview.unreadable.mean()
    if not share:
        return ()
    return (
        f"{format_percent(share, 1)} of the slide's overview cannot be decoded; "
        "copy the file again from its source",
    )
