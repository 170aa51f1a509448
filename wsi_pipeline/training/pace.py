"""How long a training will take, measured on its first steps."""

import time
from collections.abc import Callable

import torch

from tiling.wording import format_duration
from wsi_pipeline.config.settings import TrainConfig
from wsi_pipeline.models import BlockClassifier, find_architecture

LONG_S = 24 * 3600.0  # a training that takes longer is worth a warning
SKIPPED = 5  # first steps: caches fill, kernels are chosen
MEASURED = 20  # steps after them
ENOUGH_S = 60.0  # of skipped or measured steps; slow ones tell as much by fewer


class Pace:
    """Measures the first steps of a training, once.

    Parameters
    ----------
    config : TrainConfig
    device : torch.device
    clock : function, optional
        Returns seconds.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._device = device
        self._clock = clock
        self._begun: float | None = None  # start of the step
        self._skipped: list[float] = []  # seconds of each step
        self._measured: list[float] = []
        self._is_known = False

    def begin_epoch(self) -> None:
        """Start the clock; what happens between epochs does not count."""
        self._begun = None if self._is_known else self._now()

    def end_step(self, *, done: int, steps_per_epoch: int) -> str | None:
        """Note a step.

        Parameters
        ----------
        done : int
            Steps done since the beginning of the training, this one included.
        steps_per_epoch : int

        Returns
        -------
        warning : str or None
            In the step by which the pace is known, if the rest may take more than a day.
        """
        if self._begun is None:
            return None
        now = self._now()
        seconds, self._begun = now - self._begun, now
        if not _is_enough(self._skipped, SKIPPED):
            self._skipped.append(seconds)
            return None
        self._measured.append(seconds)
        if not _is_enough(self._measured, MEASURED):
            return None
        self._is_known, self._begun = True, None
        per_step = sum(self._measured) / len(self._measured)
        left = per_step * (self._config.max_epochs * steps_per_epoch - done)
        return self._warn(per_step, left, steps_per_epoch) if left > LONG_S else None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return self._clock()

    def _warn(self, per_step: float, left: float, steps_per_epoch: int) -> str:
        config = self._config
        ends = "" if config.monitor == "none" else ", unless it stops early"
        pace = f"{format_duration(per_step)} each on {self._device}"
        return (
            f"{config.model.name}: at the pace of its first steps ({pace}), an epoch of "
            f"{steps_per_epoch} steps takes {format_duration(per_step * steps_per_epoch)} and the "
            f"rest of at most {config.max_epochs} epochs {format_duration(left)}{ends}. To shorten "
            f"it: {'; '.join(suggest(config, self._device))}"
        )


def suggest(config: TrainConfig, device: torch.device) -> list[str]:
    """List what would make a training shorter, the largest gain first."""
    found = []
    if device.type == "cpu":
        found.append("train on a GPU (--device cuda)")
    elif config.precision == "fp32":
        found.append("set precision: bf16")
    kind = find_architecture(config.model.name)
    has_blocks = issubclass(kind, BlockClassifier)
    is_pretrained = config.model.weights is not None
    if has_blocks and is_pretrained and config.freeze is None and config.protopnet is None:
        found.append("freeze blocks of the initial weights (freeze: all)")
    if config.sampling == "shuffle":
        found.append(f"lower max_epochs ({config.max_epochs})")
    else:
        found.append(
            f"lower steps_per_epoch ({config.steps_per_epoch}) or max_epochs ({config.max_epochs})"
        )
    return [*found, "take a smaller network (model.options) or smaller patches"]


def _is_enough(seconds: list[float], steps: int) -> bool:
    return len(seconds) >= steps or sum(seconds) >= ENOUGH_S
