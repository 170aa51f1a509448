"""GPUs of this machine, to share out between processes: each uses one."""

import os
import sys
from pathlib import Path

# Of the drivers of Nvidia, AMD, and Windows' Linux; without one, torch need not be imported.
_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def list_gpus(device: str) -> list[str]:
    """List the GPUs that processes can share out, as ``CUDA_VISIBLE_DEVICES`` names them.

    CUDA is not started. Empty if there is none, or if `device` names one device.
    """
    if device not in ("auto", "cuda") or not _has_driver():
        return []
    count = count_gpus()
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in given.split(",")] if given else map(str, range(count))
    return list(names)[:count]


def count_gpus() -> int:
    """Count the GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def _has_driver() -> bool:
    return sys.platform == "win32" or any(Path(path).exists() for path in _DRIVERS)
