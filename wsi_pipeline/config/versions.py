"""Versions of the packages that results depend on, without importing them."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "wsi-pipeline",
    "numpy",
    "torch",
    "zarr",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "simplejpeg",
    "scikit-image",
    "scikit-learn",
    "shapely",
    "distributed",
    "h5py",
)


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
