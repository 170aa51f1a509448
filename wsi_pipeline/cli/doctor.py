"""The ``doctor`` command: checks what is installed; shows the model card of a checkpoint."""

import functools
import importlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from tiling.threads import count_cores
from wsi_pipeline.cli.options import EXIT_NOTHING_DONE
from wsi_pipeline.config.extras import EXTRAS, Extra
from wsi_pipeline.config.versions import versions


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    ok: bool
    what: str
    detail: str
    remedy: str = ""
    is_optional: bool = False

    @property
    def line(self) -> str:
        """Line that the ``doctor`` command prints."""
        remedy = f"; {self.remedy}" if self.remedy and not self.ok else ""
        state = "ok" if self.ok else "absent" if self.is_optional else "MISSING"
        return f"{state:7} {self.what}: {self.detail}{remedy}"


def doctor(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Show the model card of this checkpoint, or what describes it, instead.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check versions, devices and codecs, and what is missing; or show a model card."""
    if checkpoint is not None:
        from wsi_pipeline.config.checkpoint_header import read_meta
        from wsi_pipeline.config.model_card import render_model_card
        from wsi_pipeline.config.model_files import describe_file, find_model

        path = find_model(checkpoint)
        print(describe_file(path) or render_model_card(read_meta(path)), end="")
        return
    findings = examine()
    print("\n".join(finding.line for finding in findings))
    complete = all(finding.ok or finding.is_optional for finding in findings)
    raise typer.Exit(0 if complete else EXIT_NOTHING_DONE)


def examine() -> list[Finding]:
    """Check versions, readers, codecs, devices and the machine. Changes nothing."""
    return [
        *_packages(),
        _attempt("slide reader", _openslide, "pip install openslide-bin openslide-python"),
        _attempt("JPEG and JPEG 2000 codecs", _codecs, "pip install imagecodecs simplejpeg"),
        _attempt("patch store", _zarr, "pip install 'zarr>=3.1'"),
        *map(_extra, EXTRAS),
        _machine(),
        _scratch(),
        _slurm(),
    ]


def _packages() -> Iterator[Finding]:
    of_extras = {module for extra in EXTRAS for module in extra.modules}
    for name, found in versions().items():
        if name not in of_extras:
            yield Finding(found != "not installed", name, found, f"pip install {name}")


def _extra(extra: Extra) -> Finding:
    what = f"{extra.package}, for {', '.join(extra.used_by)}"
    if extra.missing:
        detail = f"{', '.join(extra.missing)} not installed"
        return Finding(False, what, detail, extra.remedy, is_optional=True)
    check = _torch if extra.name == "torch" else functools.partial(_import_all, extra)
    return _attempt(what, check, f"{extra.remedy} --force-reinstall")


def _import_all(extra: Extra) -> str:
    for module in extra.modules:
        importlib.import_module(module)
    return ", ".join(f"{module} {version(module)}" for module in extra.modules)


def _attempt(what: str, check: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(True, what, check())
    except Exception as error:  # a broken installation can raise anything
        return Finding(False, what, f"{type(error).__name__}: {error}", remedy)


def _openslide() -> str:
    openslide = importlib.import_module("openslide")
    return f"OpenSlide {openslide.__library_version__}"


def _codecs() -> str:
    import numpy as np
    from imagecodecs import jpeg2k_decode, jpeg2k_encode
    from simplejpeg import decode_jpeg, encode_jpeg

    picture = np.full((16, 16, 3), 200, np.uint8)
    for decode, encode in ((decode_jpeg, encode_jpeg), (jpeg2k_decode, jpeg2k_encode)):
        if decode(encode(picture)).shape != picture.shape:
            raise RuntimeError(f"{decode.__name__} does not return what was encoded")
    return "encode and decode"


def _zarr() -> str:
    import numpy as np
    import zarr

    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            store=Path(folder) / "probe.zarr", shape=(4,), chunks=(1,), shards=(4,), dtype="uint8"
        )
        array[:] = np.arange(4, dtype=np.uint8)
        if array[3] != 3:
            raise RuntimeError("a sharded array does not return what was written")
    return f"zarr {zarr.__version__}, sharded write and read"


def _torch() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names))
    return f"{torch.__version__}, devices: cpu{', ' + devices if devices else ' (no CUDA device)'}"


def _machine() -> Finding:
    return Finding(True, "cores", str(count_cores()))


def _scratch() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(
        free > 1,
        "free space in this folder",
        f"{free:.1f} GiB",
        "free some space, or use another folder",
    )


def _slurm() -> Finding:
    sbatch = shutil.which("sbatch")
    return Finding(
        True, "Slurm", "sbatch found" if sbatch else "sbatch not found (not needed for job arrays)"
    )
