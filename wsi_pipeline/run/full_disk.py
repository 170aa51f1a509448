"""A full disk, or a used-up quota: what is reported where nothing more can be written."""

import shutil
from pathlib import Path

from tiling.files import FULL


def is_full(error: BaseException) -> bool:
    """Whether an error is one of a full disk or a used-up quota."""
    return isinstance(error, OSError) and error.errno in FULL


def describe_full(path: Path | None) -> str:
    """Describe that there is no space left in a folder (None: unknown), and what to do."""
    where, free = "on the device", ""
    if path is not None:
        there = next(one for one in (path, *path.parents) if one.is_dir())
        where, free = f"in {path}", f" ({shutil.disk_usage(there).free / 2**20:.1f} MiB free)"
    return (
        f"No space left {where}{free}: free some, or raise the quota, and run the same command "
        "again; what is finished is kept. `wsi-pipeline plan` shows how much a run needs"
    )
