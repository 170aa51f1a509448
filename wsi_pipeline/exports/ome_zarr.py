"""The heatmap as OME-Zarr 0.5: a Zarr v3 group of a pyramid of float32 values, NaN not scored.

Positions are those of pixel centres, in µm, and the origin is the centre of the slide's level-0
pixel (0, 0); so each level has a scale and a translation that align it with the slide.

References
----------
.. [1] OME-NGFF 0.5, https://ngff.openmicroscopy.org/0.5/, "multiscales", "axes", "omero".
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_aside
from tiling.wording import pluralize
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.exports.base import ExportJob
from wsi_pipeline.heatmaps.files import build_pyramid

_CHUNK_PX = 256


def _is_group(path: Path) -> bool:
    """Whether a folder under an export's name is a Zarr group, as an earlier export wrote it."""
    return (path / "zarr.json").is_file()


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.ome.zarr``."""
    info = job.slide.info
    path = folder / f"{info.slide_id}.ome.zarr"
    levels = build_pyramid(job.heatmap.values)
    attributes = describe_pyramid(job.heatmap, len(levels), mpp=info.mpp, name=info.slide_id)
    with write_aside(path, is_ours=_is_group) as scratch:
        _write_group(scratch, levels, attributes)
    height, width = levels[0].shape
    return [path], f"{width} x {height} px, {pluralize(len(levels), 'level')}"


def _write_group(path: Path, levels: list[NDArray[np.float32]], attributes: dict[str, Any]) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    group = zarr.open_group(path, mode="w", zarr_format=3, attributes=attributes)
    for number, values in enumerate(levels):
        array = group.create_array(
            str(number),
            shape=values.shape,
            dtype="float32",
            chunks=(_CHUNK_PX, _CHUNK_PX),
            fill_value=np.nan,
            # In Zarr's specification, so every reader has it; gzip would write the time of day.
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
            dimension_names=("y", "x"),
        )
        array[:] = values


def describe_pyramid(
    heatmap: Heatmap, n_levels: int, *, mpp: tuple[float, float], name: str
) -> dict[str, Any]:
    """Describe the levels in OME-Zarr's metadata.

    Parameters
    ----------
    heatmap : Heatmap
    n_levels : int
        Each halves the one before.
    mpp : (x, y), µm per level-0 px
    name : str

    Returns
    -------
    attributes : dict
        Of the group.
    """
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]
    datasets = [
        {"path": str(number), "coordinateTransformations": _place(heatmap, 2**number, mpp)}
        for number in range(n_levels)
    ]
    multiscale = {"name": name, "axes": axes, "datasets": datasets, "type": "mean"}
    window = {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0}
    channel = {"label": "score", "color": "FF0000", "active": True, "window": window}
    rendering = {"channels": [channel], "rdefs": {"model": "color"}}
    return {"ome": {"version": "0.5", "multiscales": [multiscale], "omero": rendering}}


def _place(heatmap: Heatmap, times: int, mpp: tuple[float, float]) -> list[dict[str, Any]]:
    """Scale of a level's pixels, and where the centre of its first one lies; y before x, µm."""
    sides = [(heatmap.pixel_l0[axis] * times, mpp[axis]) for axis in (1, 0)]
    scale = [side * um for side, um in sides]
    # Pixels 0 to side - 1 of the slide lie under it: the middle of their centres.
    translation = [(side - 1) / 2 * um for side, um in sides]
    return [
        {"type": "scale", "scale": scale},
        {"type": "translation", "translation": translation},
    ]
