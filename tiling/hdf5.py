"""HDF5 files, ours and those of other tools: opened without locks, read without leaving the file.

Files are written aside and renamed, so no lock is needed, and many cluster file systems have none
(Lustre without flock, NFS without lockd). An HDF5 file can also send its reader to other files
(external links, external and virtual storage); such files are refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import open_file

MAX_BYTES = 2**32  # of one array in memory: 200 million patches

# What h5py raises on files that are damaged, or that are no HDF5.
READ_ERRORS = (
    OSError,
    KeyError,
    ValueError,  # of text that is not UTF-8, too
    RuntimeError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an `h5py.File` for reading, without a lock.

    HDF5 reads from a file that Python has opened, and locks none of these; ``locking=False`` would
    leave it to the environment variable HDF5_USE_FILE_LOCKING.
    """
    import h5py  # a tenth of a second that only these files need

    with open_file(path, "rb") as source, h5py.File(source, "r") as file:
        yield file


@contextmanager
def create_hdf5(path: Path) -> Iterator[Any]:
    """Create an `h5py.File` in memory, and write it to `path`, a scratch path, when it is whole.

    HDF5 itself must not write: on a full disk it leaves its file open and crashes later.
    """
    import h5py

    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    path.write_bytes(image)


def add_array(file: Any, name: str, data: NDArray[Any]) -> Any:
    """Add a data set with a checksum (Fletcher's, 32 bits) that every HDF5 library verifies.

    Equal arrays give equal bytes: no time is kept.
    """
    checked = data.size > 0 and data.ndim > 0  # HDF5 filters chunks, which are never empty
    return file.create_dataset(
        name,
        data=data,
        track_times=False,
        chunks=data.shape if checked else None,
        fletcher32=checked,
    )


def get_dataset(file: Any, name: str) -> Any:
    """Find a data set whose values are in this file.

    Raises
    ------
    ValueError
        If there is none of this name, its values are elsewhere, or they do not fit into memory.
    """
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        raise ValueError(f"it has no data set '{name}'")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"'{name}' is a link to another place or file; write the data set itself")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"'{name}' is a group, expected a data set")
    if found.is_virtual or found.external:
        raise ValueError(f"the values of '{name}' are in other files; write them into this one")
    n_bytes = found.size * found.dtype.itemsize if found.size else 0
    if n_bytes > MAX_BYTES:
        raise ValueError(f"'{name}' claims to hold {n_bytes / 2**30:.0f} GiB")
    return found


def read_array(file: Any, name: str) -> NDArray[Any]:
    """Read a data set; see `get_dataset`."""
    return np.asarray(get_dataset(file, name)[()])
