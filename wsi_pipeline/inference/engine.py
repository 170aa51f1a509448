"""Patches of one slide, or images of a folder -> scores.

Reading, moving and computing overlap: background threads read ahead, and on a GPU the next batch
is copied and queued while the one before computes. A patch that cannot be read gets NaN, never a
number. Scores do not depend on batches, threads or restarts beyond floating-point error; a run
that is killed and started again gives the same bits as one that was not.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tiling.contracts import OnProgress, PatchKind
from tiling.threads import map_in_threads
from tiling.wording import pluralize
from wsi_pipeline.cohort.data import Patches, ViewBatch, read_batch, read_views
from wsi_pipeline.cohort.image_folder import UNNAMED
from wsi_pipeline.cohort.stain_view import normalise_patches, stain_method
from wsi_pipeline.config.devices import Precision
from wsi_pipeline.config.settings import Compiler
from wsi_pipeline.contracts import Rule
from wsi_pipeline.errors import ConfigError, InferenceError
from wsi_pipeline.inference.forward import (
    Forward,
    Output,
    Pending,
    automatic_batch_size,
    check_compiler,
)
from wsi_pipeline.inference.journal import Journal
from wsi_pipeline.inference.precision import N_COMPARED, PrecisionCheck, compare_with_fp32
from wsi_pipeline.models.checkpoint import CheckpointMeta
from wsi_pipeline.run.parts import share_of
from wsi_pipeline.run.shards import Shard

log = logging.getLogger(__name__)


SLIDE_RULE = Rule(0.5)
STARVED = 0.2  # share of the time spent waiting for pixels above which a remedy is suggested
IN_FLIGHT = 2  # batches queued on the device; a third would only hold memory


@dataclass(frozen=True)
class PredictSummary:
    """What prediction on one slide did, and where its time went."""

    n_patches: int
    n_unreadable: int  # of these: NaN
    n_resumed: int  # of these: scored before the process was killed
    batch_size: int  # at the end, after any halving
    seconds_read_wait: float  # the device waited for pixels
    seconds_transfer: float  # pixels moved to the device and made floats
    seconds_model: float  # the model computed
    precision_check: PrecisionCheck | None  # None: in fp32

    @property
    def starved(self) -> bool:
        """Whether the device waited for pixels for a good part of the time."""
        total = self.seconds_read_wait + self.seconds_transfer + self.seconds_model
        return self.seconds_read_wait > max(STARVED * total, 1.0)

    def __str__(self) -> str:
        if not self.n_patches:
            return "0 patches: no tile contains tissue, nothing to score"
        parts = [pluralize(self.n_patches, "patch")]
        if self.n_unreadable:
            parts.append(f"{self.n_unreadable} unreadable")
        if self.n_resumed:
            parts.append(f"{self.n_resumed} of them done before")
        text = (
            f"{', '.join(parts)}; waited {self.seconds_read_wait:.1f} s for pixels, transfer "
            f"{self.seconds_transfer:.1f} s, model {self.seconds_model:.1f} s in batches of "
            f"{min(self.batch_size, self.n_patches)}"
        )
        if self.precision_check:
            text += f"; {self.precision_check}"
        if self.starved:
            text += (
                "; the device waits for pixels: raise predict.readers, use a faster disk, or tile "
                "with tile.store=patches if pixels are read from the slide"
            )
        return text


def predict_store(
    model: nn.Module,
    meta: CheckpointMeta,
    store: Patches,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    compiler: Compiler = "none",
    batch_size: int | None = None,
    readers: int = 2,
    output: Output = "scores",
    temperature: float | None = None,
    columns: int | None = None,
    rule: Rule = SLIDE_RULE,
    tolerance: float = 0.02,
    max_unreadable: float = 1.0,
    part: Shard | None = None,
    journal: Path | None = None,
    key: str = "",
    on_progress: OnProgress | None = None,
) -> tuple[NDArray[np.float32], PredictSummary]:
    """Score every patch of a slide.

    Parameters
    ----------
    model : PatchClassifier, or any network from (B, 3, H, W) to (B,) logits
        Moved to `device`, put into evaluation mode and channels-last layout.
    meta : CheckpointMeta
        Metadata with the size and resolution of the patches of the training.
    store : patch store of one slide
        With pixels, or with coordinates alone: then they are read from the slide.
    device, precision
        As resolved by `devices`.
    compiler : {"none", "inductor"}
        ``inductor``: `torch.compile`.
    batch_size : patches, optional
        None: by the device, the patch size and the model's layers. Halved where memory does not
        suffice; the scores do not depend on it beyond floating-point error.
    readers : int
        Threads that read ahead.
    output : {"scores", "logits"}
        What is given of each patch.
    temperature : float, optional
        Divides the logits, for calibrated scores.
    columns : int, optional
        Logits of each patch that the model returns, (B, columns), the score's first; None: (B,).
    rule : Rule
        For the comparison of a faster precision with fp32: by which decisions are taken.
    tolerance : float
        A larger difference of scores is warned of.
    part : Shard, optional
        Score only this part of the readable patches, whole batches of them, so that all parts
        together have the scores that one call gives. The others get NaN.
    journal : Path, optional
        File with the finished batches, so that an interrupted prediction continues in the slide.
        The caller removes it when the scores are safe.
    key : str
        Of all settings and inputs; a journal with another key is not used.
    on_progress : function, optional
        Called with patches done and patches to do.

    Returns
    -------
    scores : (N,) float32, or (N, columns)
        In [0, 1], or logits; in the order of the store, NaN where a patch is unreadable.
    summary : PredictSummary

    Raises
    ------
    ConfigError
        If the batch size is not positive, or the compiler cannot work here.
    InferenceError
        If the patches are not such as the model was trained on, if none or too few can be read, if
        not even one patch fits into memory, or if the model returns no finite score.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"predict: batch_size must be at least 1, got {batch_size}")
    check_compiler(compiler)
    if doubt := check_kind(meta, store):
        log.warning("%s", doubt)
    store = normalise_patches(store, stain_method(model))
    slide_id = store.slide_id
    rows = np.flatnonzero(~store.unreadable).astype(np.int64)
    forward = Forward(
        model,
        device=device,
        precision=precision,
        compiler=compiler,
        limit=batch_size or automatic_batch_size(store.kind.shape[0], device),
        output=output,
        temperature=temperature,
    )
    exact = precision == "fp32" and compiler == "none"
    first = _read_first(store, rows, most=1 if exact else N_COMPARED)
    if batch_size is None and len(first):
        forward.fit(first, slide_id)
    check = None
    if not exact and len(first):
        check = compare_with_fp32(forward, first, slide_id=slide_id, rule=rule, tolerance=tolerance)
        if not check.within:
            log.warning(
                "%s: %s, above the tolerance of %g; use --set predict.precision=fp32",
                slide_id, check, tolerance,
            )  # fmt: skip
    forward.seconds_transfer = forward.seconds_model = 0.0
    n_unreadable = len(store) - len(rows)
    rows = _share(rows, batch_size or forward.limit, part)
    found, resumed, waited = score_rows(
        forward,
        store,
        rows,
        readers=readers,
        journal=Journal(journal, key=f"{key} {forward.limit}", columns=columns),
        columns=columns,
        on_progress=on_progress,
    )
    scores = _empty(len(store), columns)
    scores[rows] = found
    lost = np.isnan(found if columns is None else found[:, 0])
    n_unreadable += int(lost.sum())
    if len(rows) and lost.all():
        raise InferenceError(
            f"{slide_id}: none of its {pluralize(len(rows), 'patch')} could be read; "
            "check the slide file, then tile and predict again"
        )
    if n_unreadable > max_unreadable * len(scores):
        raise InferenceError(
            f"{slide_id}: {n_unreadable} of {pluralize(len(scores), 'patch')} cannot be decoded, "
            f"more than tile.max_unreadable={max_unreadable:g} allows; copy the "
            "slide again from its source"
        )
    summary = PredictSummary(
        n_patches=len(scores),
        n_unreadable=n_unreadable,
        n_resumed=resumed,
        batch_size=forward.limit,
        seconds_read_wait=waited,
        seconds_transfer=forward.seconds_transfer,
        seconds_model=forward.seconds_model,
        precision_check=check,
    )
    log.info("%s: %s", slide_id, summary)
    return scores, summary


def _share(rows: NDArray[np.int64], size: int, part: Shard | None) -> NDArray[np.int64]:
    """Choose a part's rows: consecutive batches of `size`, as equal as can be."""
    if part is None:
        return rows
    batches = share_of(range(0, len(rows), size), part)
    return rows[batches[0] : batches[-1] + size] if batches else rows[:0]


def _read_first(store: Patches, rows: NDArray[np.int64], *, most: int) -> Tensor:
    """Read the first patches that can be decoded: (B, P, P, 3) uint8, B = `most` if there are."""
    pixels = read_batch(store, rows[:most]).pixels
    for start in range(most, len(rows), N_COMPARED):
        if len(pixels) >= most:
            break
        more = read_batch(store, rows[start : start + N_COMPARED])
        pixels = torch.cat([pixels, more.pixels])
    return pixels[:most]


def score_rows(
    forward: Forward,
    store: Patches,
    rows: NDArray[np.int64],
    *,
    readers: int,
    journal: Journal,
    columns: int | None = None,
    on_progress: OnProgress | None,
) -> tuple[NDArray[np.float32], int, float]:
    """Score rows of a store in batches; give scores, how many were done before, seconds waited."""
    slide_id = store.slide_id
    size = forward.limit
    pinned = forward.device.type == "cuda"
    with journal:
        parts = list(journal.batches)
        resumed = sum(len(part) for part in parts)
        todo = [rows[start : start + size] for start in range(resumed, len(rows), size)]
        clock = _Waiting(
            map_in_threads(partial(read_views, store, pinned=pinned), todo, threads=readers)
        )
        flight: deque[tuple[ViewBatch, Pending | None]] = deque()
        done = resumed

        def land() -> None:
            nonlocal done
            loaded, pending = flight.popleft()
            part = _empty(len(loaded.readable), columns)
            if pending is not None:
                part[loaded.readable] = forward.collect(pending, slide_id)
            journal.append(part)
            parts.append(part)
            done += len(part)
            if on_progress:
                on_progress(done, len(rows))

        for loaded in clock:
            pending = forward.launch(loaded.pixels) if loaded.readable.any() else None
            flight.append((loaded, pending))
            # On the CPU a launched batch is a finished one: nothing is gained by waiting.
            while len(flight) >= (IN_FLIGHT if pinned else 1):
                land()
        while flight:
            land()
    return np.concatenate(parts or [_empty(0, columns)]), resumed, clock.seconds


def _empty(n_rows: int, columns: int | None) -> NDArray[np.float32]:
    return np.full(n_rows if columns is None else (n_rows, columns), np.nan, np.float32)


class _Waiting:
    """An iterator that measures how long it was waited for."""

    def __init__(self, batches: Iterator[ViewBatch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[ViewBatch]:
        while True:
            asked = time.perf_counter()
            batch = next(self._batches, None)
            self.seconds += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


def check_kind(meta: CheckpointMeta, store: Patches) -> str:
    """Refuse patches of another size, resolution or meaning than the model was trained on.

    Returns
    -------
    doubt : str
        What is worth a warning: other names of classes than in training. Empty: nothing.

    Raises
    ------
    InferenceError
        With the values of both sides and what to do.
    """
    own, kind, name = meta.kind, store.kind, store.slide_id
    if not own.has_pixels_like(kind):
        raise InferenceError(
            f"{name}: these are {kind}, but the checkpoint of {meta.model} was trained on {own}; "
            f"{_remedy(own, kind)}"
        )
    first, second = own.class_names
    if kind.class_names in (own.class_names, UNNAMED):
        return ""
    here = f"{kind.class_names[0]} (0) and {kind.class_names[1]} (1)"
    if kind.class_names == (second, first):
        again = "tile" if kind.single else "train"
        wanted = own if kind.single else kind
        raise InferenceError(
            f"{name}: the classes are {here}, but those of the checkpoint of {meta.model} are "
            f"{first} (0) and {second} (1); {again} again with images.classes: "
            f"[{', '.join(wanted.class_names)}]"
        )
    return (
        f"{name}: the classes are {here}, those of the checkpoint of {meta.model} are {first} (0) "
        f"and {second} (1); make sure that these mean the same"
    )


def _remedy(own: PatchKind, kind: PatchKind) -> str:
    """Say how to make patches that a checkpoint can score."""
    if kind.single:
        return (
            "tile with images.size, images.channels and images.mpp to match, or give another "
            "checkpoint"
        )
    side = own.shape[0]
    if own.shape != (side, side, 3) or own.mpp <= 0:  # slides are not cut so
        return "give a checkpoint trained on such patches"
    return (
        f"tile with patch_px={side} and target_mpp={own.mpp:g}, or give a checkpoint trained on "
        "such patches"
    )
