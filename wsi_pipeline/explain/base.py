"""What every explanation method is: one signature for all, which leaves a model as it was."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.models.base import PatchClassifier
from wsi_pipeline.models.preprocess import crop_centre

Target = Literal[0, 1]  # the class that is explained: by its logit y, or by -y of class 0

# Pixels of changed copies of an image that go through a model at once.
_CPU_PIXELS, _GPU_PIXELS = 2**18, 2**22


class Details(Protocol):
    """What a method found besides its map."""

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write it to files whose names begin with `stem`."""


@dataclass(frozen=True)
class Found:
    """A map on the model's device, and what was found besides."""

    values: Tensor  # (h, w)
    details: Details | None = None


@dataclass(frozen=True)
class Explanation:
    """One image, explained."""

    values: NDArray[np.float32]  # (h, w), not rescaled
    details: Details | None = None


class Compute(Protocol):
    """Explains one image."""

    def __call__(
        self, model: Any, image: Tensor, *, target: Target, seed: int, config: Any
    ) -> Tensor | Found:
        """Compute a map.

        Parameters
        ----------
        model : PatchClassifier
            In evaluation mode.
        image : (1, C, h, w) float in [0, 1]
            On the device of the model and of its dtype; cropped as the model crops.
        target : 0 or 1
        seed : int
            Torch's generators start from it; other generators are the method's own.
        config
            The method's settings.

        Returns
        -------
        values : (h, w)
            Or more, as `Found`.
        """


@dataclass(frozen=True)
class Settings:
    """Settings of a method that has none; those of others derive from it."""


@dataclass(frozen=True)
class Method:
    """An explanation method; call it for the maps of images.

    Attributes
    ----------
    compute : function
        Explains one image.
    settings : type
        A frozen dataclass whose defaults are the published ones.
    low, high : float
        Every value of its maps lies between. Where `low` is negative, positive values speak for
        the class that is explained and negative ones against it.
    is_probability : bool
        The maps are probabilities, which pictures and comparisons do not rescale.
    of_predicted : bool
        Unless a class is named, it explains the one that the model predicts, not class 1.
    models : tuple of types
        Architectures that it explains.
    """

    compute: Compute
    settings: type[Settings] = Settings
    low: float = -math.inf
    high: float = math.inf
    is_probability: bool = False
    of_predicted: bool = False
    models: tuple[type[PatchClassifier], ...] = (PatchClassifier,)

    def explains(self, architecture: type[PatchClassifier]) -> bool:
        """Return whether the method explains an architecture."""
        return issubclass(architecture, self.models)

    @property
    def has_layer(self) -> bool:
        """Whether it looks at one layer, which may be chosen."""
        return "layer" in {field.name for field in fields(self.settings)}

    def choose_settings(self, layer: str | None) -> Settings:
        """Return the default settings, with a layer where the method has one."""
        return self.settings(**({"layer": layer} if self.has_layer else {}))

    def __call__(
        self,
        model: PatchClassifier,
        images: NDArray[Any],
        *,
        target: Target | None = None,
        seed: int = 0,
        config: Settings | None = None,
    ) -> NDArray[np.float32]:
        """Map images.

        Parameters
        ----------
        model : PatchClassifier
            On any device, in any mode; it is left as it was.
        images : (n, H, W, C) uint8, or float in [0, 1]
            C is 3, or 1 for grey.
        target : 0 or 1, optional
            The class that is explained. None: 1, or the predicted one (`of_predicted`).
        seed : int
            Of the methods that draw: the same seed gives the same bytes, whatever the batch.
        config : optional
            Of the type `settings`. None: the defaults.

        Returns
        -------
        maps : (n, H, W) float32
            Not rescaled. Of a model that crops, (n, h, w): of the crop.

        Raises
        ------
        ModelError
            If the method does not explain the model, images are not as above, torch is in
            inference mode, or a map is not finite.
        """
        found = self.explain(model, images, target=target, seed=seed, config=config)
        if found:
            return np.stack([one.values for one in found])
        return np.zeros((0, *images.shape[1:3]), np.float32)

    def explain(
        self,
        model: PatchClassifier,
        images: NDArray[Any],
        *,
        target: Target | None = None,
        seed: int = 0,
        config: Settings | None = None,
    ) -> list[Explanation]:
        """Map images as a call does, and keep what the method finds besides."""
        chosen = self.settings() if config is None else config
        self._check(model, target, chosen)
        weight = next(model.parameters())
        found = []
        with as_it_was(model, weight.device):
            for number, pixels in enumerate(images):
                image = crop_as(model, to_tensor(pixels, weight))
                torch.manual_seed(seed)
                of_class = self._choose_target(model, image) if target is None else target
                made = self.compute(model, image, target=of_class, seed=seed, config=chosen)
                made = made if isinstance(made, Found) else Found(made)
                values = made.values.detach().float().cpu().numpy()
                if values.shape != image.shape[-2:] or not np.isfinite(values).all():
                    raise ModelError(
                        f"the map of image {number} has {values.size} values, of which "
                        f"{np.isfinite(values).sum()} are finite, for {image[0, 0].numel()} "
                        f"pixels; weights of {type(model).__name__} may have diverged"
                    )
                found.append(Explanation(values, made.details))
        return found

    def _choose_target(self, model: PatchClassifier, image: Tensor) -> Target:
        if not self.of_predicted:
            return 1
        with torch.no_grad():
            score = model.score(image).item()
        is_positive = score > model.threshold if model.strict else score >= model.threshold
        return 1 if is_positive else 0

    def _check(self, model: PatchClassifier, target: int | None, config: Settings) -> None:
        if not self.explains(type(model)):
            known = ", ".join(kind.__name__ for kind in self.models)
            raise ModelError(
                f"this method explains {known}, not {type(model).__name__}; take another method"
            )
        if target not in (0, 1, None):
            raise ModelError(f"the class that is explained is 0 or 1, got target={target!r}")
        if not isinstance(config, self.settings):
            raise ModelError(
                f"settings of this method are {self.settings.__name__}, got {type(config).__name__}"
            )
        if torch.is_inference_mode_enabled():
            raise ModelError(
                "explanations need gradients, which torch.inference_mode() rules out; call the "
                "method outside of it"
            )


def to_tensor(pixels: NDArray[Any], like: Tensor) -> Tensor:
    """Bring an image to a device: (H, W, C) uint8 or float in [0, 1] -> (1, C, H, W).

    Raises
    ------
    ModelError
        If it has another shape, dtype or range.
    """
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ModelError(f"images are (n, H, W, 3), or (n, H, W, 1), got (n, *{pixels.shape})")
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if pixels.dtype != np.uint8 and not is_float:
        raise ModelError(f"images are uint8 or float in [0, 1], got {pixels.dtype}")
    if is_float and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ModelError(
            f"images of floats are in [0, 1], got {pixels.min()} to {pixels.max()}; divide by 255?"
        )
    image = torch.from_numpy(np.array(pixels)).to(like.device).permute(2, 0, 1).to(like.dtype)
    return (image if is_float else image / 255)[None]


def crop_as(model: PatchClassifier, image: Tensor) -> Tensor:
    """Crop images as a model would, so that a map lies on what the model sees."""
    crop = model.preprocess.config.crop if model.preprocess is not None else None
    return image if crop is None else crop_centre(image, crop)


@contextlib.contextmanager
def as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, exact gradients, generators of its own; the model's modes come back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    try:
        model.eval()
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class TargetLogit(nn.Module):
    """The logit of the class that is explained: y of class 1, -y of class 0.

    Parameters
    ----------
    model : PatchClassifier
    target : 0 or 1
    """

    def __init__(self, model: PatchClassifier, target: Target) -> None:
        super().__init__()
        self.model = model
        self.sign = 1 if target == 1 else -1

    def forward(self, x: Tensor) -> Tensor:
        """Score images: (B, C, h, w) -> (B,)."""
        logits: Tensor = self.model(x)
        return self.sign * logits


def images_at_once(image: Tensor) -> int:
    """Return how many changed copies of an image to pass forward at once."""
    pixels = _CPU_PIXELS if image.device.type == "cpu" else _GPU_PIXELS
    return max(1, pixels // (image.shape[-2] * image.shape[-1]))


@torch.inference_mode()
def score_copies(
    logit: TargetLogit, image: Tensor, count: int, change: Callable[[int], Tensor]
) -> NDArray[np.float64]:
    """Score changed copies of an image, some at once.

    Parameters
    ----------
    logit : TargetLogit
    image : (1, C, h, w)
    count : int
    change : function
        Number of a copy -> (C, h, w).

    Returns
    -------
    logits : (count,)
    """
    step = images_at_once(image)
    parts = [
        logit(torch.stack([change(number) for number in range(first, min(first + step, count))]))
        for first in range(0, count, step)
    ]
    return np.asarray(torch.cat(parts).cpu().double().numpy())


def logit_of(model: PatchClassifier, pixels: NDArray[Any]) -> float:
    """Return the logit y of class 1 of one image, (H, W, C) as `Method` takes them."""
    weight = next(model.parameters())
    with as_it_was(model, weight.device), torch.no_grad():
        return float(model(crop_as(model, to_tensor(pixels, weight))))


def require(is_right: bool, what: str) -> None:
    """Refuse a setting of a method.

    Raises
    ------
    ConfigError
    """
    if not is_right:
        raise ConfigError(what)
