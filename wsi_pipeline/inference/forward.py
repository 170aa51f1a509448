"""A model on its device: how many patches it takes at once, and passing them through it.

A pass is launched and collected apart, so that on a GPU the next batch is copied and queued while
the one before still computes: the device never waits for the host to fetch scores.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tiling.wording import pluralize
from wsi_pipeline.cohort.data import to_unit_range
from wsi_pipeline.cohort.patch_views import PatchViews
from wsi_pipeline.config.devices import Precision, compute_in, exact_fp32, place_model
from wsi_pipeline.config.settings import Compiler
from wsi_pipeline.errors import ConfigError, InferenceError

log = logging.getLogger(__name__)

# Automatic batches: enough pixels to keep the device busy.
CPU_BATCH_PIXELS = 2**20  # four patches of 512 px
GPU_BATCH_PIXELS = 2**24  # 64 patches of 512 px
MAX_BATCH = 1024
Output = Literal["scores", "logits"]
# As many patches as keep the largest layer's input and output within this. Constants of the
# device, not what happens to be free, so that a run repeated gives the same bits.
CPU_LAYER_BYTES = 2**29  # VGG16: four patches of 512 px
GPU_LAYER_SHARE = 1 / 8  # of the device's memory


def batch_pixels(device: torch.device) -> int:
    """Return how many pixels keep a device busy."""
    return GPU_BATCH_PIXELS if device.type == "cuda" else CPU_BATCH_PIXELS


def automatic_batch_size(patch_px: int, device: torch.device) -> int:
    """Choose how many patches to read and compute at once, before the model is known.

    Examples
    --------
    >>> automatic_batch_size(512, torch.device("cpu"))
    4
    """
    return min(max(1, batch_pixels(device) // patch_px**2), MAX_BATCH)


@dataclass
class Pending:
    """A batch on its way through the model."""

    pixels: PatchViews  # on the host, kept in case memory does not suffice
    outputs: Tensor | None  # (B,) float32 on the host; None: to be computed in parts
    events: tuple[Any, Any, Any] | None  # CUDA: before the copy, after it, outputs there


class Forward:
    """A model on its device.

    Parameters
    ----------
    model : nn.Module
        From (B, 3, P, P) in [0, 1] to (B,) logits. Moved to the device, put into evaluation mode
        and channels-last layout.
    device, precision
        As resolved by `devices`.
    compiler : {"none", "inductor"}
        ``inductor``: `torch.compile`; batches are padded to one size, so that it compiles once.
    limit : int
        Patches at once.
    output : {"scores", "logits"}
        What is given of each patch; the score is the sigmoid of the logit.
    temperature : float, optional
        Divides the logits, for calibrated scores.

    Attributes
    ----------
    limit : int
        Patches at once; halved whenever memory does not suffice.
    seconds_transfer, seconds_model : float
        Moving pixels to the device and making floats of them; computing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        precision: Precision,
        compiler: Compiler = "none",
        limit: int,
        output: Output = "scores",
        temperature: float | None = None,
    ) -> None:
        self.output = output
        self._temperature = temperature
        self._plain = place_model(model, device).eval()
        self._model: Any = torch.compile(self._plain) if compiler == "inductor" else self._plain
        self._padded = compiler == "inductor"
        self.device = device
        self._precision = precision
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._floats: Tensor | None = None  # a CPU's input, used again for each batch
        self.limit = limit
        self.seconds_transfer = 0.0
        self.seconds_model = 0.0

    def fit(self, pixels: Tensor, slide_id: str) -> None:
        """Choose the batch size from the largest layer of one patch.

        Raises
        ------
        InferenceError
            If not even one patch fits into memory.
        """
        try:
            with _largest_layer(self._plain) as seen, self._inference(self._precision):
                self._plain(to_unit_range(pixels[:1], self.device))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise self._too_large(slide_id) from error
        self.limit = min(self.limit, max(1, int(_layer_budget(self.device) // max(1, seen[-1]))))

    def launch(self, pixels: PatchViews) -> Pending:
        """Start on a batch; returns before a GPU has finished it."""
        if len(pixels) > self.limit:
            return Pending(pixels, None, None)
        try:
            if self._copies is not None:
                return self._launch_cuda(pixels)
            started = time.perf_counter()
            x = self._pad(self._convert(pixels))
            moved = time.perf_counter()
            outputs = self._pass(x)[: len(pixels)]
            self.seconds_transfer += moved - started
            self.seconds_model += time.perf_counter() - moved
            return Pending(pixels, outputs, None)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return Pending(pixels, None, None)

    def _convert(self, pixels: PatchViews) -> Tensor:
        """Make a batch in a CPU's memory the model's input; valid until the next batch."""
        held = self._floats
        if held is None or held.shape[1:] != pixels.shape or len(held) < len(pixels):
            held = self._floats = torch.empty((len(pixels), *pixels.shape))
        return pixels.floats(held[: len(pixels)])

    def _launch_cuda(self, pixels: PatchViews) -> Pending:
        """Copy on a stream of its own, so that it overlaps the batch before."""
        before, copied, after = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        main = torch.cuda.current_stream(self.device)
        assert self._copies is not None
        with torch.cuda.stream(self._copies):
            before.record()
            moved = pixels.to(self.device)
            copied.record()
        main.wait_event(copied)
        moved.memory.record_stream(main)
        outputs = self._pass(self._pad(moved.floats()))[: len(pixels)]
        # Fetched from here, for a copy asked for later would wait for the batches queued by then.
        with torch.inference_mode():
            outputs = torch.empty(outputs.shape, pin_memory=True).copy_(outputs, non_blocking=True)
        after.record(main)
        return Pending(pixels, outputs, (before, copied, after))

    def collect(self, pending: Pending, slide_id: str) -> NDArray[np.float32]:
        """Fetch a batch's outputs, (B,) float32; in smaller parts where memory was short.

        Raises
        ------
        InferenceError
            If not even one patch fits into memory, or an output is no finite number.
        """
        if pending.outputs is None:
            return self._in_parts(pending.pixels, slide_id)
        if pending.events is not None:
            before, copied, after = pending.events
            after.synchronize()
            self.seconds_transfer += before.elapsed_time(copied) / 1e3
            self.seconds_model += copied.elapsed_time(after) / 1e3
        outputs: NDArray[np.float32] = pending.outputs.numpy()
        return _checked(outputs, slide_id, self._precision)

    def score(self, pixels: Tensor, slide_id: str) -> NDArray[np.float32]:
        """Score a batch, (B, P, P, 3) uint8, at once."""
        return self._score(PatchViews.of(pixels), slide_id)

    def _score(self, pixels: PatchViews, slide_id: str) -> NDArray[np.float32]:
        return self.collect(self.launch(pixels), slide_id)

    def score_exactly(self, pixels: Tensor, slide_id: str) -> NDArray[np.float32]:
        """Score in fp32 without a compiler, one patch at a time, as the reference."""
        with self._inference("fp32"):
            parts = [
                self._finish(self._plain(to_unit_range(one[None], self.device))) for one in pixels
            ]
        return _checked(torch.cat(parts).cpu().numpy(), slide_id, "fp32")

    def _in_parts(self, pixels: PatchViews, slide_id: str) -> NDArray[np.float32]:
        if len(pixels) <= self.limit:  # it was this size that did not fit
            if len(pixels) == 1:
                raise self._too_large(slide_id)
            self.limit = len(pixels) // 2
            log.warning("%s: out of memory, continuing with batches of %d", slide_id, self.limit)
            self._floats = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        size = self.limit  # parts may halve it further
        parts = [
            self._score(pixels[start : start + size], slide_id)
            for start in range(0, len(pixels), size)
        ]
        return np.concatenate(parts)

    def _pass(self, x: Tensor) -> Tensor:
        with self._inference(self._precision):
            return self._finish(self._model(x))

    def _finish(self, logits: Tensor) -> Tensor:
        exact = logits.float()
        if self._temperature is not None:
            exact = exact / self._temperature
        return exact.sigmoid() if self.output == "scores" else exact

    @contextlib.contextmanager
    def _inference(self, precision: Precision) -> Iterator[None]:
        with torch.inference_mode(), exact_fp32(), compute_in(precision, self.device):
            yield

    def _pad(self, x: Tensor) -> Tensor:
        if not self._padded or len(x) == self.limit:
            return x
        black = x.new_zeros((self.limit - len(x), *x.shape[1:]))
        return torch.cat([x, black]).contiguous(memory_format=torch.channels_last)

    def _too_large(self, slide_id: str) -> InferenceError:
        return InferenceError(
            f"{slide_id}: not even one patch fits into the memory of {self.device}; "
            "use --device cpu, or free the device for this job"
        )


def _checked(
    scores: NDArray[np.float32], slide_id: str, precision: Precision
) -> NDArray[np.float32]:
    n_bad = int((~np.isfinite(scores)).sum())
    if n_bad:
        raise InferenceError(
            f"{slide_id}: the model returned no finite score for {n_bad} of "
            f"{pluralize(len(scores), 'patch')} in {precision}; {suggest_no_score(precision)}"
        )
    return scores


def suggest_no_score(precision: Precision) -> str:
    """Suggest a remedy for a model that gives no finite score."""
    if precision != "fp32":
        return "use --set predict.precision=fp32, or train again"
    return (
        "the weights in its checkpoint are too large or not finite: train again with a lower lr, "
        "or use another checkpoint"
    )


def check_compiler(compiler: Compiler) -> None:
    """Raise an error if `torch.compile` cannot work.

    Raises
    ------
    ConfigError
        With what is missing.
    """
    if compiler == "none" or torch.cuda.is_available():
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "predict.compiler: inductor needs a C++ compiler (g++ or clang++) on the CPU and none "
            "was found; install one, or use compiler: none"
        ) from error


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


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
