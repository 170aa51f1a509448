"""The explanation of one patch, made when somebody asks for it."""

import tempfile
from functools import lru_cache
from pathlib import Path

from tiling.files import digest_file
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ViewError
from wsi_pipeline.explain import load_method
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.stages.model_sources import load_model
from wsi_pipeline.stages.subjects import Subject, crop_pixels, read_pixels


def explain_patch(run: RunFolder, entry: SlideEntry, row: int, model: str, method: str) -> bytes:
    """Explain a patch: its map over its pixels as PNG, by the method's default settings.

    The map is that of ``wsi-pipeline explain`` (docs/explain.md), with limits of its own.

    Raises
    ------
    ViewError
        If the run has no checkpoint of the model.
    ConfigError, ModelError
        If there is no such method, or it does not explain the model.
    """
    path = run.checkpoint(model)
    if not path.is_file():
        raise ViewError(
            f"{model}: this run has its scores, not its checkpoint; explanations need the run that "
            "it was trained in"
        )
    return _explain(run, entry, row, model, method, digest_file(path))


@lru_cache(maxsize=256)
def _explain(
    run: RunFolder, entry: SlideEntry, row: int, model: str, method: str, checkpoint: str
) -> bytes:
    from wsi_pipeline.cohort.stain_view import stain_method
    from wsi_pipeline.explain.pictures import draw_overlay, find_limits

    found = load_method(method)
    network, _ = load_model(run.checkpoint(model), checkpoint)
    pixels = read_pixels(run, Subject(row, method, -1, 0.0, entry), stain=stain_method(network))
    (made,) = found.explain(network, pixels.values[None])
    shown = crop_pixels(pixels, made.values.shape)
    signed = found.low < 0
    limits = (0.0, 1.0) if found.is_probability else find_limits([made.values], signed=signed)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "map.png"
        draw_overlay(
            picture,
            shown.values,
            made.values,
            limits=limits,
            title=f"{method}, {model}",
            um_per_px=shown.um_per_px,
        )
        return picture.read_bytes()
