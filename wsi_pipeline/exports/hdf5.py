"""Reproducible HDF5 files: equal content gives equal bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tiling.files import write_aside
from tiling.hdf5 import add_array, create_hdf5


def write_hdf5(
    path: Path, data: Mapping[str, NDArray[Any]], *, coords_attributes: Mapping[str, Any]
) -> None:
    """Write data sets, one of them ``coords`` with attributes atomically."""
    with write_aside(path) as scratch, create_hdf5(scratch) as file:
        for name, values in data.items():
            add_array(file, name, values)
        for name, value in coords_attributes.items():
            file["coords"].attrs[name] = value
