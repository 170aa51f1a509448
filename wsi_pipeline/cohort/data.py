"""Patch stores to batches on the device.

Pixels stay uint8 until they are on the device: a quarter of the bytes to move. Background
threads read ahead, since decoding releases the interpreter; batches come out in the order
they were asked for, so the number of threads never changes a result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.contracts import CLASS_NAMES, PatchKind, PatchOrigin, PixelArrays
from tiling.strips import StripPlan
from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.batch_memory import batch_memory
from wsi_pipeline.cohort.patch_views import PatchViews
from wsi_pipeline.errors import TrainingError


class Patches(Protocol):
    """What a model needs of patches: of a slide's `tiling.store.PatchStore`, or of images."""

    @property
    def slide_id(self) -> str:
        """Name of the slide; of images, of their patient."""

    @property
    def kind(self) -> PatchKind:
        """Size, resolution and classes."""

    @property
    def fingerprint(self) -> str:
        """Of the settings and inputs that made them."""

    @property
    def label(self) -> NDArray[np.int8]:
        """(N,) 1, 0, or -1: unlabelled or ignored."""

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """(N,) True where the pixels could not be decoded."""

    def read_into(self, indices: NDArray[np.int64], out: PixelArrays) -> NDArray[np.bool_]:
        """Read patches into n arrays (P, P, 3); return which of them could not be decoded, (n,)."""

    def locate(self, row: int) -> PatchOrigin:
        """Return where a patch is from."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Batch:
    """Patches as read."""

    pixels: Tensor  # (n, P, P, 3) uint8, of images (n, H, W, C); only those that could be decoded
    readable: NDArray[np.bool_]  # (B,) which of the patches asked for these are; n are True


@runtime_checkable
class InStrips(Protocol):
    """Patches of which neighbours can be read together; `tiling.store.PatchStore` describes it."""

    @property
    def kind(self) -> PatchKind:
        """Size, resolution and classes."""

    def plan_strips(self, indices: NDArray[np.int64]) -> StripPlan | None:
        """Plan to read patches; None: each by itself."""

    def read_strips(
        self, indices: NDArray[np.int64], plan: StripPlan, memory: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Read them; return which could not be decoded."""


@dataclass(frozen=True)
class ViewBatch:
    """Patches as read, those that overlap in shared memory."""

    pixels: PatchViews  # of those that could be decoded
    readable: NDArray[np.bool_]  # (B,) which of the patches asked for these are


def load_batch(
    stores: Sequence[Patches],
    slide: NDArray[np.int64],
    patch: NDArray[np.int64],
    *,
    pinned: bool = False,
) -> Batch:
    """Read drawn patches, whatever slides they come from.

    Each store is read once, in its own order, and a patch that was drawn twice is read once; each
    patch is read straight to its place in the batch. A patch that cannot be decoded is left out; of
    a store without pixels, that shows only here.

    Parameters
    ----------
    stores : patch stores
        All with patches of one size.
    slide : (B,)
        Index into `stores`; at least one.
    patch : (B,)
        Row of that store.
    pinned : bool
        Store the pixels in page-locked memory, from which a GPU can copy while it computes.
    """
    if not len(slide):
        raise ValueError("a batch holds at least one patch")
    tensor = batch_memory.take((len(slide), *stores[int(slide[0])].kind.shape), pinned=pinned)
    pixels = tensor.numpy()
    unreadable = np.zeros(len(slide), np.bool_)
    order = np.lexsort((patch, slide))  # stable: of equal patches, the first drawn comes first
    new_slide = np.diff(slide[order], prepend=-1) != 0
    is_first = new_slide | (np.diff(patch[order], prepend=-1) != 0)
    first = order[is_first]  # one place of each patch
    starts = np.flatnonzero(new_slide[is_first])
    for places in np.split(first, starts[1:]):
        store = stores[int(slide[places[0]])]
        unreadable[places] = store.read_into(patch[places], [pixels[i] for i in places.tolist()])
    source = first[np.cumsum(is_first) - 1]
    for place, read in zip(order[~is_first].tolist(), source[~is_first].tolist(), strict=True):
        pixels[place] = pixels[read]
        unreadable[place] = unreadable[read]
    return _as_batch(tensor, unreadable)


def read_batch(store: Patches, rows: NDArray[np.int64], *, pinned: bool = False) -> Batch:
    """Read some patches of one slide."""
    tensor = batch_memory.take((len(rows), *store.kind.shape), pinned=pinned)
    return _as_batch(tensor, store.read_into(rows, tensor.numpy()))


def read_views(store: Patches, rows: NDArray[np.int64], *, pinned: bool = False) -> ViewBatch:
    """Read some patches of one slide, those that overlap as views of shared pixels.

    The pixels are those of `read_batch`; of neighbours in a row, each is read, held and moved to
    the device once.
    """
    if isinstance(store, InStrips) and (plan := store.plan_strips(rows)) is not None:
        memory = batch_memory.take((plan.n_bytes,), pinned=pinned)
        readable = ~store.read_strips(rows, plan, memory.numpy())
        views = PatchViews(memory, plan.first, plan.pitch, store.kind.shape)
        return ViewBatch(views[readable], readable)
    batch = read_batch(store, rows, pinned=pinned)
    return ViewBatch(PatchViews.of(batch.pixels), batch.readable)


def _as_batch(pixels: Tensor, unreadable: NDArray[np.bool_]) -> Batch:
    if not unreadable.any():
        return Batch(pixels, ~unreadable)
    kept = pixels[torch.from_numpy(~unreadable)]
    return Batch(kept.pin_memory() if pixels.is_pinned() else kept, ~unreadable)


def to_unit_range(batch: Tensor, device: torch.device) -> Tensor:
    """Move a uint8 batch to the device and make it a model's input.

    Parameters
    ----------
    batch : (B, P, P, 3) uint8, of images (B, H, W, C)
        Copied without waiting where it is pinned.

    Returns
    -------
    x : (B, 3, P, P) float32 in [0, 1]
        Channels last in memory, as convolutions like it.
    """
    moved = batch.to(device, non_blocking=True)
    return moved.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)  # keeps the strides


def usable_labels(store: Patches) -> NDArray[np.int8]:
    """Labels to train on: those of the store, and -1 where a patch cannot be read."""
    return np.where(store.unreadable, -1, store.label).astype(np.int8)


def check_stores(
    train: Sequence[Patches],
    val: Sequence[Patches],
    patients: Mapping[str, str],
    *,
    validated: bool = True,
) -> None:
    """Refuse what cannot be trained on, before any time is spent; validation only where wanted.

    Raises
    ------
    TrainingError
        If a split lacks a class, a patch has a third one, patches differ in size or resolution, or
        a patient is in both splits.
    """
    for store in (*train, *val):
        if (usable_labels(store) >= len(CLASS_NAMES)).any():
            found = ", ".join(map(str, np.unique(store.label)))
            raise TrainingError(
                f"{store.slide_id} has patches of the labels {found}; every model here has "
                "one logistic output, so training takes two classes: 0 and 1, and -1 for patches "
                "to leave out"
            )
    _check_classes("train", train)
    if validated:
        _check_classes("val", val)
    first = train[0]
    for store in (*train, *val):
        if not store.kind.has_pixels_like(first.kind):
            raise TrainingError(
                f"patches differ: {first.slide_id} has {first.kind}, {store.slide_id} has "
                f"{store.kind}; tile all slides with the same patch_px and target_mpp"
            )
    groups = [{patients[store.slide_id] for store in split} for split in (train, val)]
    if shared := sorted(groups[0] & groups[1]):
        raise TrainingError(
            f"patients in both train and val: {', '.join(shared)}; a patient belongs to one split: "
            "correct the manifest's split column"
        )


def _check_classes(split: str, stores: Sequence[Patches]) -> None:
    if not stores:
        raise TrainingError(
            f"split {split} has no slide; fill the manifest's split column, or set splits in the "
            "config" + ("; or train without validation: monitor: none" if split == "val" else "")
        )
    labels = [usable_labels(store) for store in stores]
    for label, name in enumerate(CLASS_NAMES):
        if not any((y == label).any() for y in labels):
            ids = name_some(store.slide_id for store in stores)
            raise TrainingError(
                f"split {split} has no readable patch of class {name} (label {label}) on its "
                f"{pluralize(len(stores), 'slide')} ({ids}); move a slide that has "
                f"some into {split}, or check the annotations, the slide labels and the label rule"
            )


def choose_validation(
    labels: Sequence[NDArray[np.int8]], *, most: int | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Choose the patches that every epoch is validated on.

    Parameters
    ----------
    labels : (n_s,) per slide
        1, 0, or -1: left out.
    most : int, optional
        None: all labelled patches. Else at most `most`, half of each class (fewer where there
        are fewer), taken from the slides in turn so that no large slide outweighs the others.
    seed : int

    Returns
    -------
    slide, patch, label : (n,)
        Index of the slide, row on it, and label; ordered by slide and row.
    """
    slide = np.concatenate([np.full(len(y), i, np.int64) for i, y in enumerate(labels)])
    patch = np.concatenate([np.arange(len(y), dtype=np.int64) for y in labels])
    label = np.concatenate(list(labels))
    if most is None:
        chosen = np.flatnonzero(label >= 0)
    else:
        random = np.random.default_rng(seed)
        halves = [_in_turn(slide, label == y, random)[: max(1, most // 2)] for y in (0, 1)]
        chosen = np.sort(np.concatenate(halves))
    return slide[chosen], patch[chosen], label[chosen]


def _in_turn(
    slide: NDArray[np.int64], wanted: NDArray[np.bool_], random: np.random.Generator
) -> NDArray[np.int64]:
    """Shuffle the wanted places so that the slides take turns."""
    places = random.permutation(np.flatnonzero(wanted))
    by_slide = places[np.argsort(slide[places], kind="stable")]
    counts = np.unique(slide[by_slide], return_counts=True)[1]
    turn = np.concatenate([np.arange(n) for n in counts]) if len(counts) else counts
    return by_slide[np.argsort(turn, kind="stable")]
