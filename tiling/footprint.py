"""What a patch store will take on disk, before any patch is read.

The metadata and the table are written to memory by the code that writes them to a folder, so their
size is what it will be. Pixels are stored as they are: a shard is its patches, each with a
checksum, and an index.
"""

from io import BytesIO

from tiling.attributes import store_attributes
from tiling.contracts import Footprint, Slide, TileConfig
from tiling.plan_picture import draw_plan
from tiling.qc import save_qc
from tiling.shards import CHECKSUM_BYTES, INDEX_ENTRY_BYTES
from tiling.store_files import create_patches, finish_store, shard_length, write_table
from tiling.tile_plan import TilePlan


def store_footprint(plan: TilePlan, config: TileConfig, fingerprint: str) -> Footprint:
    """Estimate the size of a plan's patch store."""
    memory: dict[str, bytes] = {}
    pixels = Footprint(0, 0)
    if config.store == "patches":
        n_patches, patch_px = len(plan.table.coords), plan.geometry.patch_px
        create_patches(memory, n_patches=n_patches, patch_px=patch_px)
        pixels = _pixel_footprint(n_patches, patch_px)
    write_table(memory, plan.table)
    finish_store(memory, store_attributes(plan, config, fingerprint, plan.notes), plan.table)
    sizes = [len(value) for value in memory.values()]
    return Footprint(len(sizes), sum(sizes)) + pixels


def _pixel_footprint(n_patches: int, patch_px: int) -> Footprint:
    length = shard_length(n_patches, patch_px)
    n_shards = -(-n_patches // length)
    index = n_shards * (INDEX_ENTRY_BYTES * length + CHECKSUM_BYTES)
    return Footprint(n_shards, (3 * patch_px**2 + CHECKSUM_BYTES) * n_patches + index)


def picture_bytes(slide: Slide, plan: TilePlan) -> int:
    """Draw the QC picture of a plan, and count the bytes of its file."""
    file = BytesIO()
    save_qc(file, draw_plan(slide, plan))
    return len(file.getvalue())
