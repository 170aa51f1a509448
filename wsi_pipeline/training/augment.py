"""Random crops, zooms, turns, flips, stain and colour changes of a batch, on its device, seeded.

References
----------
.. [1] Lecture on cancer detection in whole-slide images, "Dataset augmentation": random vertical
   and horizontal flips, random colour perturbations. It names no sizes; `AugmentConfig` does.
.. [2] PatchNet paper 1, 4.1: random crops of textures.
.. [3] PatchNet paper 2, section 3: rotations by 180 degrees, zoom-ins up to 120 %.
.. [4] Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a
   Reference to Train Distilled Stain-Invariant Convolutional Networks", IEEE Transactions on
   Medical Imaging 2018: random scaling and shifting of haematoxylin, eosin and DAB.
.. [5] Ruifrok, Johnston, "Quantification of histochemical staining by color deconvolution",
   Analytical and Quantitative Cytology and Histology 2001: the stains' optical densities.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsi_pipeline.config.settings import AugmentConfig
from wsi_pipeline.errors import ConfigError, ModelError

# ITU-R BT.601 luma, the grey that saturation and contrast turn towards.
_LUMA = (0.299, 0.587, 0.114)

# Optical density of red, green and blue light by haematoxylin, eosin and DAB [5], a stain per row.
RUIFROK = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))

# Index of each augmentation among a sample's random numbers. Indices are fixed, so that enabling
# one augmentation does not affect the others.
_DECIDES = ("hue", "saturation", "brightness", "contrast", "flip_x", "flip_y", "turn", "zoom",
            "top", "left", *(f"stain_{n}" for n in range(6)))  # fmt: skip
_NUMBERS = 16  # per sample; a multiple of the four words that a step of Philox's counter gives


class Augment:
    """Random augmentation of each patch of a batch.

    The changes of sample i depend on the seed and on i alone, not on the batches, the number of
    processes, or the device.

    Parameters
    ----------
    config : AugmentConfig
    seed : int
        At least 0, below 2^128.
    crop : (height, width), px, optional
        Size of a random crop; it replaces the model's own central crop.

    Raises
    ------
    ConfigError
        If a setting is out of its range.
    """

    def __init__(
        self, config: AugmentConfig, *, seed: int, crop: tuple[int, int] | None = None
    ) -> None:
        if not config.zoom >= 1:
            raise ConfigError(f"augment: zoom must be at least 1, got {config.zoom}")
        self._config = config
        self._seed = seed
        self._crop = crop
        self._n_seen = 0

    def __call__(self, x: Tensor, samples: NDArray[np.int64] | None = None) -> Tensor:
        """Change a batch.

        Parameters
        ----------
        x : (B, C, H, W) float in [0, 1]
            With one channel, stains, hue and saturation have nothing to change.
        samples : (B,), optional
            Number of each sample. Default: counted from call to call.

        Returns
        -------
        x : (B, C, H, W) float in [0, 1]
            A new tensor, of the crop's size; the order is crop, zoom, stains, hue, saturation,
            brightness, contrast, flips, half turns.
        """
        if samples is None:
            samples = self._n_seen + np.arange(len(x))
            self._n_seen += len(x)
        if not len(x):
            return x
        numbers = draw_numbers(self._seed, samples)
        drawn = torch.from_numpy(numbers)  # on the CPU: not every device has float64
        number = {name: drawn[:, place] for place, name in enumerate(_DECIDES)}
        config = self._config
        if self._crop is not None:
            x = crop_at(x, self._crop, number["top"], number["left"])
        if config.zoom > 1:
            x = zoom_in(x, 1 + (config.zoom - 1) * number["zoom"])
        if config.stain and x.shape[1] == 3:
            sides = torch.stack([2 * number[f"stain_{n}"] - 1 for n in range(6)], dim=1)
            x = change_stains(x, 1 + config.stain * sides[:, :3], config.stain * sides[:, 3:])
        near = drawn.to(x.dtype).to(x.device, non_blocking=True)[:, :, None, None, None]
        x = self._perturb(x, {name: near[:, place] for place, name in enumerate(_DECIDES)})
        if not (config.flips or config.rotate_180):
            return x
        low = numbers < 0.5
        coin = {name: low[:, place] for place, name in enumerate(_DECIDES)}
        nowhere = np.zeros(len(x), np.bool_)
        turn = coin["turn"] if config.rotate_180 else nowhere
        flip_x, flip_y = (coin[n] if config.flips else nowhere for n in ("flip_x", "flip_y"))
        return flip(x, along_x=flip_x ^ turn, along_y=flip_y ^ turn)

    def _perturb(self, x: Tensor, number: dict[str, Tensor]) -> Tensor:
        """Change the colours, or the greys of a single channel."""
        config = self._config
        spread = {name: 2 * values - 1 for name, values in number.items()}  # in [-1, 1)
        if config.hue and x.shape[1] > 1:
            x = turn_hue(x, config.hue * spread["hue"])
        if config.saturation and x.shape[1] > 1:
            x = _blend(_grey(x), x, 1 + config.saturation * spread["saturation"])
        if config.brightness:
            x = (x * (1 + config.brightness * spread["brightness"])).clamp_(0, 1)
        if config.contrast:
            mean = _grey(x).mean(dim=(2, 3), keepdim=True)
            x = _blend(mean, x, 1 + config.contrast * spread["contrast"])
        return x


def draw_numbers(seed: int, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each sample its own random numbers: (B,) -> (B, 16) in [0, 1)."""
    first, last = int(samples.min()), int(samples.max())
    generator = np.random.Philox(key=seed)
    generator.advance(first * _NUMBERS // 4)
    words = generator.random_raw((last - first + 1) * _NUMBERS)
    numbers = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(numbers.reshape(-1, _NUMBERS)[samples - first])


def crop_at(x: Tensor, size: tuple[int, int], top: Tensor, left: Tensor) -> Tensor:
    """Crop each image at its own position.

    Parameters
    ----------
    x : (B, C, H, W)
    size : (height, width), px
    top, left : (B,) in [0, 1), on the CPU
        Position as a share of the possible offsets, which are equally likely.
    """
    height, width = size
    room_y, room_x = x.shape[-2] - height, x.shape[-1] - width
    if min(room_y, room_x) < 0:
        raise ModelError(
            f"an image of {x.shape[-1]} x {x.shape[-2]} px is smaller than the crop of {width} x "
            f"{height} px; set a smaller crop, or a larger size of images"
        )
    offsets = [
        (share * (room + 1)).long().to(x.device, non_blocking=True)
        for share, room in ((top, room_y), (left, room_x))
    ]
    rows = offsets[0][:, None] + torch.arange(height, device=x.device)  # (B, height)
    columns = offsets[1][:, None] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    found = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2)


def zoom_in(x: Tensor, factor: Tensor) -> Tensor:
    """Enlarge each image about its centre and keep its size: what leaves the frame is cut off.

    Parameters
    ----------
    x : (B, C, H, W)
    factor : (B,), at least 1, on the CPU
        Bilinear in between.
    """
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    scale = (1 / factor).to(x.dtype).to(x.device, non_blocking=True)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def change_stains(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift the amounts of haematoxylin, eosin and DAB in each image [4], [5].

    Amounts may become negative, so without a change the image stays as it is.

    Parameters
    ----------
    x : (B, 3, H, W) float in [0, 1]
        Values below 1/255 count as that: black has no finite optical density.
    factor : (B, 3), on the CPU
        Of each stain's amount.
    shift : (B, 3), on the CPU
        Added to the amounts, also where there is no tissue, in units of natural optical density.

    Returns
    -------
    x : (B, 3, H, W) float in [0, 1]
    """
    stains = torch.tensor(RUIFROK, dtype=torch.float64)  # (stain, channel)
    amounts = torch.linalg.inv(stains).T  # of a density (3,)
    matrix = stains.T @ (factor.double()[:, :, None] * amounts)  # (B, 3, 3)
    offset = shift.double() @ stains
    density = x.clamp_min(1 / 255).log_().neg_()
    matrix, offset = (v.to(x.dtype).to(x.device, non_blocking=True) for v in (matrix, offset))
    density = torch.einsum("bij,bjhw->bihw", matrix, density)
    return density.add_(offset[:, :, None, None]).neg_().exp_().clamp_(0, 1)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != len(_LUMA):
        return x.mean(dim=1, keepdim=True)
    weights = torch.tensor(_LUMA, dtype=x.dtype, device=x.device)[None, :, None, None]
    return (x * weights).sum(dim=1, keepdim=True)


def _blend(towards: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """Go from `towards` (factor 0) through `x` (factor 1) and beyond."""
    return (x - towards).mul_(factor).add_(towards).clamp_(0, 1)


def flip(x: Tensor, *, along_x: NDArray[np.bool_], along_y: NDArray[np.bool_]) -> Tensor:
    """Flip some images of a batch, (B, C, H, W), along their columns (x) and rows (y)."""
    if x.device.type != "cpu":  # few operations, on whole batches
        for dim, chosen in ((3, along_x), (2, along_y)):
            mask = torch.from_numpy(chosen).to(x.device)[:, None, None, None]
            x = torch.where(mask, x.flip(dim), x)
        return x
    # A single channel's layout is ambiguous, and convolutions depend on it.
    flipped = torch.empty_like(x) if x.shape[1] > 1 else x.new_empty(x.shape)
    for dims, chosen in (
        ((), ~along_x & ~along_y),
        ((3,), along_x & ~along_y),
        ((2,), ~along_x & along_y),
        ((2, 3), along_x & along_y),
    ):
        for image in np.flatnonzero(chosen).tolist():
            flipped[image] = x[image].flip([dim - 1 for dim in dims]) if dims else x[image]
    return flipped


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn each patch's colours around the grey axis.

    A rotation of RGB space around (1, 1, 1), clipped to [0, 1]: the hue circle without the
    corners of HSV, and linear, so it is one small matrix product per patch. Greys stay as they are.

    Parameters
    ----------
    x : (B, 3, H, W) float in [0, 1]
    turn : (B, 1, 1, 1)
        In full turns: 1/3 turns red to green.
    """
    angle = turn.flatten() * (2 * torch.pi)
    cosine, sine = angle.cos(), angle.sin()
    # Rodrigues' formula for the axis (1, 1, 1) / sqrt 3; rows are the new R, G, B.
    same = (1 + 2 * cosine) / 3
    back = (1 - cosine) / 3 - sine / 3**0.5
    forth = (1 - cosine) / 3 + sine / 3**0.5
    matrix = torch.stack(
        [
            torch.stack([same, back, forth], dim=1),
            torch.stack([forth, same, back], dim=1),
            torch.stack([back, forth, same], dim=1),
        ],
        dim=1,
    )
    return torch.einsum("bij,bjhw->bihw", matrix, x).clamp_(0, 1)
