"""Choice of device and precision.

Both are resolved when a stage starts, not at import: nothing here changes torch's global state.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import nn

from tiling.wording import pluralize
from wsi_pipeline.config.settings import DEVICE_NAME
from wsi_pipeline.errors import ConfigError, TrainingError

Precision = Literal["fp32", "bf16", "fp16"]
Model = TypeVar("Model", bound=nn.Module)

_AUTOCAST_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str, *, worker: int | None = None) -> torch.device:
    """Resolve ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` to an available device.

    ``auto`` is the first CUDA device, or the CPU if there is none. ``mps`` is the GPU of a Mac; it
    is taken only where it is named, since not every model runs on it (`require_float64`).

    Parameters
    ----------
    name : str
    worker : int, optional
        Number of this process among those of this machine: with ``auto`` and ``cuda``, GPUs are
        assigned in turn.

    Raises
    ------
    ConfigError
        If the name is not one of these, or the device is not available.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n_devices else "cpu"
    if name == "cuda" and n_devices:
        name = f"cuda:{(worker or 0) % n_devices}"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(
                f"device mps not found: torch {torch.__version__} sees no GPU of a Mac (Apple "
                "silicon, macOS 14 or later); use --device auto or cpu"
            )
        return torch.device("mps")
    match = DEVICE_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"unknown device {name!r}; give auto, cpu, cuda:0 (cuda:1, ...) or mps")
    index = int(match[1] or 0)
    if index >= n_devices:
        raise ConfigError(
            f"device {name} not found: torch {torch.__version__} sees "
            f"{pluralize(n_devices, 'CUDA device')}; use --device auto or cpu, or install a torch "
            "build for this machine's CUDA"
        )
    return torch.device("cuda", index)


def check_one_each(name: str, processes: int) -> None:
    """Refuse to run several processes of one training on a single GPU.

    Raises
    ------
    ConfigError
        If the name is of one GPU, or there are fewer GPUs than processes.
    """
    kind = resolve_device(name).type
    if kind == "cpu":
        return
    if ":" in name or kind == "mps":
        raise ConfigError(
            f"device {name} is one GPU for {processes} processes; use cuda or auto, which assign "
            "each its own where there are several, or processes: 1"
        )
    if processes > torch.cuda.device_count():
        raise ConfigError(
            f"processes: {processes} need as many GPUs, but torch sees "
            f"{torch.cuda.device_count()}; lower train.<model>.processes"
        )


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Resolve ``auto``, ``fp32``, ``bf16`` or ``fp16`` for a device.

    ``auto`` is fp32 on the CPU; on a GPU bf16 if its hardware supports it, else fp16.

    Raises
    ------
    ConfigError
        If the name is not one of these, or fp16 is asked of a CPU.

    Examples
    --------
    >>> resolve_precision("auto", torch.device("cpu"))
    'fp32'
    """
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "fp16"
    if name not in get_args(Precision):
        raise ConfigError(f"unknown precision {name!r}; give auto, fp32, bf16 or fp16")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU; on the CPU use fp32, or bf16 for speed")
    return cast(Precision, name)


def require_float64(device: torch.device, what: str) -> None:
    """Refuse a device that lacks float64, for computations that need it.

    Raises
    ------
    ConfigError
        With the computation.
    """
    if device.type == "mps":
        raise ConfigError(
            f"{what} in float64, which device mps lacks; use --device cpu, or another model"
        )


def place_model(model: Model, device: torch.device) -> Model:
    """Move a model to a device, in the channels-last layout, which is faster for convolutions."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its types
    return model


@contextlib.contextmanager
def compute_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the block in mixed precision; fp32 leaves everything as it is."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=_AUTOCAST_DTYPE[precision]):
        yield


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Run the block without TF32: on a GPU fp32 convolutions are otherwise rounded to 10 bits.

    cuDNN's default has a relative error of 1e-3. The reference of other precisions, and maps that
    are exact to 1e-5, need all 23 bits. Nothing changes on the CPU.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def reproducible(device: torch.device, *, seed: int, strict: bool = False) -> Iterator[None]:
    """Run the block with seeded random numbers and cuDNN's repeatable algorithms.

    Torch's own generators and settings are as before when the block ends.

    Parameters
    ----------
    device : torch.device
    seed : int
    strict : bool
        Refuse every nondeterministic operation.

    Raises
    ------
    TrainingError
        With the operation, if `strict`.
    """
    devices = [device] if device.type == "cuda" else []
    with (
        _only_deterministic() if strict else contextlib.nullcontext(),
        torch.random.fork_rng(devices=devices),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _only_deterministic() -> Iterator[None]:
    # cuBLAS is deterministic with this workspace only; it is read when CUDA is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise TrainingError(
            f"determinism: strict: the operation {found[1]} has no deterministic implementation in "
            "torch on this device; set train.<model>.determinism=repeatable, or use a model "
            "without it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
