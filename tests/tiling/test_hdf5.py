"""HDF5 files: no locks, no links to other files, checksums, and a full disk is an OSError."""

import errno

import h5py
import numpy as np
import pytest

from tests.helpers.disks import small_disk
from tiling.hdf5 import add_array, create_hdf5, get_dataset, open_hdf5, read_array

VALUES = np.arange(600, dtype=np.int64).reshape(-1, 2)


@pytest.fixture
def path(tmp_path):
    with create_hdf5(tmp_path / "a.h5") as file:
        add_array(file, "coords", VALUES)
    return tmp_path / "a.h5"


def test_plain_h5py_reads_what_is_written(path):
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["coords"][()], VALUES)
        assert file["coords"].fletcher32
    with open_hdf5(path) as file:
        np.testing.assert_array_equal(read_array(file, "coords"), VALUES)


@pytest.mark.parametrize("shape", [(0, 2), ()])
def test_arrays_without_chunks_come_back(tmp_path, shape):
    with create_hdf5(tmp_path / "a.h5") as file:
        add_array(file, "a", np.zeros(shape, np.float32))
    with open_hdf5(tmp_path / "a.h5") as file:
        assert read_array(file, "a").shape == shape


def test_a_flipped_byte_of_the_values_is_noticed(path):
    data = bytearray(path.read_bytes())
    at = bytes(data).index(VALUES[100:102].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with open_hdf5(path) as file, pytest.raises(OSError, match=r"checksum|filter"):
        read_array(file, "coords")


def external_link(file, other):
    file["coords"] = h5py.ExternalLink(other, "coords")


def soft_link(file, other):
    file["coords"] = h5py.SoftLink("/elsewhere")


def external_storage(file, other):
    file.create_dataset("coords", (2, 2), "i8", external=[(other, 0, 32)])


def virtual_storage(file, other):
    layout = h5py.VirtualLayout(VALUES.shape, "i8")
    layout[...] = h5py.VirtualSource(other, "coords", VALUES.shape)
    file.create_virtual_dataset("coords", layout)


def group(file, other):
    file.create_group("coords")


def enormous(file, other):
    file.create_dataset("coords", (2**40, 2), "i8", chunks=(1024, 2))


def absent(file, other):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external_link, "a link to another place or file"),
        (soft_link, "a link to another place or file"),
        (external_storage, "are in other files"),
        (virtual_storage, "are in other files"),
        (group, "is a group"),
        (enormous, "16384 GiB"),
        (absent, "no data set 'coords'"),
    ],
)
def test_values_that_are_not_in_the_file_are_refused(tmp_path, path, make, message):
    """An HDF5 file could have any other file of the machine read, or all of its memory filled."""
    with h5py.File(tmp_path / "b.h5", "w") as file:
        make(file, str(path))
    with open_hdf5(tmp_path / "b.h5") as file, pytest.raises(ValueError, match=message):
        get_dataset(file, "coords")


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    """HDF5 raised a RuntimeError without its cause, and crashed when the program ended."""
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", kib=64) as disk:
        with pytest.raises(OSError) as caught, create_hdf5(disk / "a.h5") as file:
            add_array(file, "coords", np.zeros((50_000, 2), np.int64))
        assert caught.value.errno == errno.ENOSPC
