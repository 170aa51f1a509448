"""The prediction engine: one slide's patches -> scores.

Background threads read ahead while the model computes. A patch that cannot be read gets NaN,
never a number.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.checkpoint import CheckpointMeta
from wsi_pipeline.data import Patches, prefetch, read_batch, same_patches, to_unit_range
from wsi_pipeline.devices import Precision, compute_in, place_model
from wsi_pipeline.errors import ConfigError, InferenceError

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, Any]], None]

# Automatic batches. Read at once: enough pixels to keep the device busy.
CPU_BATCH_PIXELS = 2**20  # four patches of 512 px
GPU_BATCH_PIXELS = 2**24  # 64 patches of 512 px
MAX_BATCH = 1024
# Computed at once: as many as keep the largest layer's input and output within this. Constants of
# the device, not what happens to be free, so that a run repeated gives the same bits.
CPU_LAYER_BYTES = 2**29  # VGG16: four patches of 512 px
GPU_LAYER_SHARE = 1 / 8  # of the device's memory


@dataclass(frozen=True)
class PredictSummary:
    """What prediction on one slide did, and where its time went."""

    n_patches: int
    n_unreadable: int  # of these: NaN
    batch_size: int  # at the end, after any halving
    seconds_read_wait: float  # the model waited for pixels
    seconds_model: float  # the model computed

    def __str__(self) -> str:
        unreadable = f", {self.n_unreadable} unreadable" if self.n_unreadable else ""
        return (
            f"{self.n_patches} patches{unreadable}; waited {self.seconds_read_wait:.1f} s for "
            f"pixels, computed {self.seconds_model:.1f} s in batches of {self.batch_size}"
        )


def predict_store(
    model: nn.Module,
    meta: CheckpointMeta,
    store: Patches,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    readers: int = 2,
    on_progress: Progress | None = None,
) -> tuple[NDArray[np.float32], PredictSummary]:
    """Score every patch of a slide.

    Parameters
    ----------
    model : PatchClassifier, or any network from (B, 3, H, W) to (B,) logits
        Moved to `device`, put into evaluation mode and channels-last layout.
    meta : CheckpointMeta
        Says what patches the model was trained on.
    store : patch store of one slide
    device, precision
        As resolved by `devices`.
    batch_size : patches, optional
        None: by the device and the patch size. Halved where memory does not suffice; the scores
        do not depend on it beyond floating-point error.
    readers : int
        Threads that read ahead.
    on_progress : function, optional
        Called with patches done, patches to do, and a dict of the slide's id.

    Returns
    -------
    scores : (N,) float32 in [0, 1]
        In the order of the store; NaN where a patch is unreadable.
    summary : PredictSummary

    Raises
    ------
    ConfigError
        If the batch size is not positive.
    InferenceError
        If the patches are not such as the model was trained on, if none can be read, if not even
        one patch fits into memory, or if the model returns no finite score.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"predict: batch_size must be at least 1, got {batch_size}")
    check_patches(meta, store)
    slide_id = store.info.slide_id
    limit = batch_size or automatic_batch_size(store.geometry.patch_px, device)
    scorer = _Scorer(
        model, device=device, precision=precision, limit=limit, measure=batch_size is None
    )
    rows = np.flatnonzero(~store.unreadable).astype(np.int64)
    batches = [rows[start : start + limit] for start in range(0, len(rows), limit)]
    read = partial(read_batch, store, pinned=device.type == "cuda")
    scores = np.full(len(store), np.nan, np.float32)
    done, waited, asked = 0, 0.0, time.perf_counter()
    for batch, loaded in zip(batches, prefetch(read, batches, threads=readers), strict=True):
        waited += time.perf_counter() - asked
        if loaded.readable.any():
            scores[batch[loaded.readable]] = scorer.score(loaded.pixels, slide_id)
        done += len(batch)
        if on_progress:
            on_progress(done, len(rows), {"slide_id": slide_id})
        asked = time.perf_counter()
    unread = np.isnan(scores)
    if len(rows) and unread.all():
        raise InferenceError(
            f"{slide_id}: not one of its {len(rows)} patches could be read; "
            "check the slide file, then tile and predict again"
        )
    summary = PredictSummary(len(scores), int(unread.sum()), scorer.limit, waited, scorer.seconds)
    log.info("%s: %s", slide_id, summary)
    return scores, summary


def check_patches(meta: CheckpointMeta, store: Patches) -> None:
    """Refuse patches of another size or resolution than the model was trained on.

    Raises
    ------
    InferenceError
        Saying both sides' values and what to do.
    """
    geometry = store.geometry
    if same_patches(geometry.patch_px, geometry.target_mpp, meta.patch_px, meta.target_mpp):
        return
    raise InferenceError(
        f"{store.info.slide_id}: its patches are {geometry.patch_px} px at {geometry.target_mpp:g} "
        f"µm/px, but the checkpoint of {meta.model} was trained on {meta.patch_px} px at "
        f"{meta.target_mpp:g} µm/px; tile with patch_px={meta.patch_px} and "
        f"target_mpp={meta.target_mpp:g}, or give a checkpoint trained on such patches"
    )


def automatic_batch_size(patch_px: int, device: torch.device) -> int:
    """Choose how many patches to read at once.

    Examples
    --------
    >>> automatic_batch_size(512, torch.device("cpu"))
    4
    """
    pixels = GPU_BATCH_PIXELS if device.type == "cuda" else CPU_BATCH_PIXELS
    return min(max(1, pixels // patch_px**2), MAX_BATCH)


def _layer_budget(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory) * GPU_LAYER_SHARE
    return float(CPU_LAYER_BYTES)


@contextlib.contextmanager
def _largest_layer(model: nn.Module) -> Iterator[list[int]]:
    """Note each layer's input and output bytes while the model runs; its maximum is the last."""
    seen = [0]

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        seen.append(max(seen[-1], sum(t.numel() * t.element_size() for t in tensors)))

    leaves = [m for m in model.modules() if not any(m.children())]
    hooks = [m.register_forward_hook(note) for m in leaves]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class _Scorer:
    """A model on its device; learns how many patches fit into memory at once."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        precision: Precision,
        limit: int,
        measure: bool,
    ) -> None:
        self._model = place_model(model, device).eval()
        self._device = device
        self._precision = precision
        self._measure = measure
        self.limit = limit
        self.seconds = 0.0

    def score(self, pixels: Tensor, slide_id: str) -> NDArray[np.float32]:
        """(B, P, P, 3) uint8 -> (B,) float32 in [0, 1]."""
        started = time.perf_counter()
        parts: list[NDArray[np.float32]] = []
        done = 0
        if self._measure:
            parts.append(self._score_first(pixels[:1], slide_id))
            done = 1
        while done < len(pixels):
            part = self._try(pixels[done : done + self.limit])
            if part is not None:
                parts.append(part)
                done += len(part)
            else:
                self._halve(slide_id)
        self.seconds += time.perf_counter() - started
        return self._checked(np.concatenate(parts), slide_id)

    def _score_first(self, pixels: Tensor, slide_id: str) -> NDArray[np.float32]:
        """Score one patch, and from its largest layer tell how many to compute at once."""
        with _largest_layer(self._model) as seen:
            scores = self._try(pixels)
        if scores is None:
            raise self._too_large(slide_id)
        fits = int(_layer_budget(self._device) // max(1, seen[-1]))
        self.limit = min(self.limit, max(1, fits))
        self._measure = False
        return scores

    @torch.inference_mode()
    def _try(self, pixels: Tensor) -> NDArray[np.float32] | None:
        """Score, or None where memory does not suffice."""
        try:
            x = to_unit_range(pixels, self._device)
            with compute_in(self._precision, self._device):
                logits = self._model(x)
            scores: NDArray[np.float32] = logits.float().sigmoid().cpu().numpy()
            return scores
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return None

    def _halve(self, slide_id: str) -> None:
        if self.limit == 1:
            raise self._too_large(slide_id)
        self.limit //= 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s: out of memory, going on with batches of %d", slide_id, self.limit)

    def _too_large(self, slide_id: str) -> InferenceError:
        return InferenceError(
            f"{slide_id}: not even one patch fits into the memory of {self._device}; "
            "use --device cpu, a smaller patch_px, or free the device for this job"
        )

    def _checked(self, scores: NDArray[np.float32], slide_id: str) -> NDArray[np.float32]:
        n_bad = int((~np.isfinite(scores)).sum())
        if n_bad:
            raise InferenceError(
                f"{slide_id}: the model gave no finite score for {n_bad} of {len(scores)} patches "
                f"in {self._precision}; use --set precision=fp32, or train again"
            )
        return scores


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
