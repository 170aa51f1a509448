"""HDF5 files that are the same bytes for the same content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from tiling.files import write_aside


def write_hdf5(
    path: Path, data: Mapping[str, NDArray[Any]], *, coords_attributes: Mapping[str, Any]
) -> None:
    """Write data sets, one of them ``coords`` with attributes, whole or not at all."""
    with write_aside(path) as scratch, h5py.File(scratch, "w") as file:
        for name, values in data.items():
            file.create_dataset(name, data=values, track_times=False)  # times change the bytes
        for name, value in coords_attributes.items():
            file["coords"].attrs[name] = value
