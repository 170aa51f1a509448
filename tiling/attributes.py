"""What a store states of itself: its slide, every setting as it was used, versions, notes."""

import importlib.metadata
from dataclasses import asdict
from functools import cache
from typing import Any

from tiling.annotation.slide_annotation import describe_lesions
from tiling.contracts import SlideInfo, TileConfig, TileGeometry
from tiling.resample import nearest_finer_level
from tiling.tile_plan import TilePlan

VERSIONED = ("wsi-pipeline", "numpy", "zarr", "openslide-python", "openslide-bin", "tifffile")


def store_attributes(
    plan: TilePlan, config: TileConfig, fingerprint: str, notes: tuple[str, ...]
) -> dict[str, Any]:
    """Put a store's group attributes together."""
    return {
        "slide": asdict(plan.info),
        "tiling": _resolved(config, plan.geometry, plan.info),
        "slide_label": plan.slide_label,
        "lesions": describe_lesions(plan.annotation, plan.info),
        "fingerprint": fingerprint,
        "versions": dict(_versions()),
        "notes": list(notes),
    }


def _resolved(config: TileConfig, geometry: TileGeometry, info: SlideInfo) -> dict[str, Any]:
    """Every setting of the tiling as it was used, none left to a default."""
    stride_px = geometry.patch_px if config.stride_px is None else config.stride_px
    level = nearest_finer_level(info.level_downsamples, geometry.scale)
    return {
        **asdict(config),
        "coords": None if config.coords is None else config.coords.name,  # of a path, its last name
        **asdict(geometry),
        "stride_px": stride_px,
        "level": level,  # the stored level that patches are read from
        "tissue": {
            **asdict(config.tissue),
            "mask": None if config.tissue.mask is None else config.tissue.mask.name,
        },
    }


@cache  # of a process: reading them takes longer than a small table
def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
