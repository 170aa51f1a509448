"""Patches with normalised stains: what a model reads in place of a store."""

import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import PatchKind, PatchOrigin, PixelArrays
from wsi_pipeline.cohort.stains import StainMap, fit_stains
from wsi_pipeline.config.settings import PreprocessConfig, StainMethod
from wsi_pipeline.errors import ConfigError, StainError

if TYPE_CHECKING:
    from wsi_pipeline.cohort.data import Patches

log = logging.getLogger(__name__)

SAMPLE_PATCHES = 64  # of a slide, evenly spaced among those that can be read
SLIDE = -1  # stands for the row, where a map is of the whole slide
SAMPLE_SIDE = 64  # pixels of each patch along a side, at most, evenly spaced
IMAGE_SIDE = 256  # the same of a single image, all that its map is fitted to


class NormalisedPatches:
    """Patches of a slide whose stains are mapped to a reference as they are read.

    The map is fitted once, to a sample that depends on the store alone. A slide in which no stains
    are found keeps its colours, with a warning. Single images have a map each.

    Parameters
    ----------
    store : Patches
        Of three channels.
    method : {"macenko", "reinhard"}

    Raises
    ------
    ConfigError
        If the patches have no colour.
    """

    def __init__(self, store: "Patches", method: StainMethod) -> None:
        if store.kind.shape[2] != 3:
            raise ConfigError(
                f"{store.slide_id}: preprocess.stain={method} needs three channels, got "
                f"{store.kind.shape[2]}; leave it out, or set images.channels=3"
            )
        self._store = store
        self._method = method
        self._lock = threading.Lock()  # several threads read
        self._maps: dict[int, StainMap | None] = {}  # of the slide, or of each image by row

    @property
    def slide_id(self) -> str:
        """Name of the slide; of images, of their patient."""
        return self._store.slide_id

    @property
    def kind(self) -> PatchKind:
        """Size, resolution and classes."""
        return self._store.kind

    @property
    def fingerprint(self) -> str:
        """Of the settings and inputs that made the store."""
        return self._store.fingerprint

    @property
    def label(self) -> NDArray[np.int8]:
        """(N,) 1, 0, or -1: unlabelled or ignored."""
        return self._store.label

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """(N,) True where the pixels could not be decoded."""
        return self._store.unreadable

    def __len__(self) -> int:
        return len(self._store)

    def locate(self, row: int) -> PatchOrigin:
        """Return where a patch is from."""
        return self._store.locate(row)

    def read_into(self, indices: NDArray[np.int64], out: PixelArrays) -> NDArray[np.bool_]:
        """Read patches as the store does, and map their colours; unreadable ones stay white."""
        unreadable = self._store.read_into(indices, out)
        rows = np.asarray(indices).tolist()
        for row, image, lost in zip(rows, out, unreadable.tolist(), strict=True):
            if lost:
                continue
            chosen = self._map_of_image(row, image) if self.kind.single else self.slide_map()
            if chosen is not None:
                image[...] = chosen(image)
        return unreadable

    def slide_map(self) -> StainMap | None:
        """Return the map of the slide; None: its colours are kept."""
        with self._lock:
            if SLIDE not in self._maps:
                self._maps[SLIDE] = _fit_or_warn(self._sample(), self._method, name=self.slide_id)
            return self._maps[SLIDE]

    def _map_of_image(self, row: int, image: NDArray[np.uint8]) -> StainMap | None:
        with self._lock:
            if row not in self._maps:
                name = self.locate(row).source_id
                self._maps[row] = _fit_image(image, self._method, name=name)
            return self._maps[row]

    def _sample(self) -> NDArray[np.uint8]:
        """Read some pixels: (n, 3)."""
        rows = np.flatnonzero(~self._store.unreadable)
        places = np.linspace(0, len(rows) - 1, min(SAMPLE_PATCHES, len(rows)))
        buffer = np.empty((1, *self.kind.shape), np.uint8)
        parts = [np.empty((0, 3), np.uint8)]
        for row in rows[places.round().astype(np.int64)]:
            if not self._store.read_into(np.array([row]), buffer)[0]:
                parts.append(_thin(buffer[0], SAMPLE_SIDE).copy())
        return np.concatenate(parts)


def normalise_patches(store: "Patches", method: StainMethod | None) -> "Patches":
    """Return a store as a model with this `preprocess.stain` reads it; None: the store itself.

    One that is normalised already is returned as it is.
    """
    if method is None or isinstance(store, NormalisedPatches):
        return store
    return NormalisedPatches(store, method)


def fit_slide_map(store: "Patches", method: StainMethod | None) -> StainMap | None:
    """Return the map of a slide's colours that its patches get; None: they are kept."""
    return None if method is None else NormalisedPatches(store, method).slide_map()


def normalise_image(
    pixels: NDArray[np.uint8], method: StainMethod | None, *, name: str
) -> NDArray[np.uint8]:
    """Map the colours of a single image, (H, W, 3) uint8, by a map of its own."""
    found = None if method is None else _fit_image(pixels, method, name=name)
    return pixels if found is None else found(pixels)


def stain_method(model: Any) -> StainMethod | None:
    """Return the stain normalisation that a model was trained with; None: none."""
    config = getattr(getattr(model, "preprocess", None), "config", None)
    return config.stain if isinstance(config, PreprocessConfig) else None


def _thin(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Choose at most side x side pixels of an image on a regular grid: (n, 3)."""
    height, width, _ = image.shape
    return image[:: -(-height // side), :: -(-width // side)].reshape(-1, 3)


def _fit_image(image: NDArray[np.uint8], method: StainMethod, *, name: str) -> StainMap | None:
    return _fit_or_warn(_thin(image, IMAGE_SIDE), method, name=name)


def _fit_or_warn(pixels: NDArray[np.uint8], method: StainMethod, *, name: str) -> StainMap | None:
    try:
        return fit_stains(pixels, method)
    except StainError as error:
        log.warning("%s: stains are not normalised: %s", name, error)
        return None
