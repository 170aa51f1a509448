"""Scores and heatmaps in other tools' formats, one file per format.

A format is a module here, named as in `FORMATS` (``ome-zarr``: ``ome_zarr.py``), with a function
``write`` of the type `Writer`; one that has a meaning for single images, too, has ``write_image``
of the type `ImageWriter`. To add one: write that file and add a line to `FORMATS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.names import check_listed

if TYPE_CHECKING:
    from wsi_pipeline.exports.base import ImageWriter, Writer

__all__ = ["COORDS_ONLY", "FORMATS", "check_format", "load_format", "load_image_format"]

# Description of each format. Modules are loaded on use, since some are heavy.
FORMATS = {
    "qupath": "GeoJSON of tiles or merged regions, for QuPath",
    "wsinfer": "CSV of WSInfer: minx,miny,width,height,prob_<class>",
    "clam": "HDF5 of CLAM: coords and attention_scores",
    "trident": "HDF5 of TRIDENT: <slide_id>_patches.h5 with coords; needs no scores",
    "clam-coords": "the same for CLAM: coords alone",
    "wsinfer-coords": "the same for WSInfer",
    "camelyon16": "CSV of detections, prob,x,y, as the froc command reads them",
    "ome-zarr": "OME-Zarr 0.5 of the heatmap",
}

# Coordinates of the patches: written from the patch stores, without a model.
COORDS_ONLY = ("trident", "clam-coords", "wsinfer-coords")


def check_format(name: str) -> None:
    """Refuse an unknown format.

    Raises
    ------
    ConfigError
        With the known formats.
    """
    check_listed(name, FORMATS, "format")


def load_format(name: str) -> "Writer":
    """Load the function that writes a format."""
    check_format(name)
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast("Writer", module.write)


def load_image_format(name: str) -> "ImageWriter":
    """Load the function that writes a single image in a format.

    Raises
    ------
    ConfigError
        If the format has no meaning for single images.
    """
    check_format(name)

    def find(other: str) -> "ImageWriter | None":
        module = import_module(f"{__name__}.{other.replace('-', '_')}")
        return cast("ImageWriter | None", getattr(module, "write_image", None))

    if writer := find(name):
        return writer
    raise ConfigError(
        f"{name} ({FORMATS[name]}) holds places in a slide, and single images have none; for them "
        f"there are {', '.join(other for other in FORMATS if find(other))}"
    )
