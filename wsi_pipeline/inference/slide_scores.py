"""A slide and a checkpoint -> scores, in one call and without a run folder."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tiling.build import tile_slide
from tiling.contracts import OnProgress, StrPath, TileConfig
from tiling.errors import GridError, PatchSizeError
from tiling.store import PatchStore
from tiling.threads import count_cores
from tiling.urls import local_path
from wsi_pipeline.cohort.colours import find_far
from wsi_pipeline.cohort.stain_view import normalise_patches, stain_method
from wsi_pipeline.config.checkpoint_header import require_temperature
from wsi_pipeline.config.devices import resolve_device, resolve_precision
from wsi_pipeline.config.model_files import find_model, fit_meta, open_external
from wsi_pipeline.config.reading import digest_settings
from wsi_pipeline.config.settings import PredictConfig, score_settings
from wsi_pipeline.contracts import Scores
from wsi_pipeline.errors import ConfigError, InferenceError
from wsi_pipeline.inference.engine import predict_store
from wsi_pipeline.inference.scores import make_scores
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.models.checkpoint import CheckpointMeta, digest, digest_model, load_checkpoint
from wsi_pipeline.models.external import load_external, with_classes

log = logging.getLogger(__name__)


def predict(
    checkpoint: StrPath | tuple[PatchClassifier, CheckpointMeta],
    slide: StrPath | PatchStore,
    *,
    tile: TileConfig | None = None,
    mpp: float | None = None,
    architecture: str | None = None,
    positive: Sequence[str] = (),
    calibrated: bool = False,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    batch_size: int | None = None,
    readers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Scores:
    """Score a slide's patches with a trained model.

    A slide file is cut as the checkpoint needs it, and patches are read straight from the file;
    nothing is kept on disk. The scores are those of ``wsi-pipeline predict --slides``.

    Parameters
    ----------
    checkpoint : str or path, or (model, meta)
        A checkpoint file, or what `load_checkpoint` returned, to score several slides; that model
        is moved to the device. Or a model of another program, as ``predict --checkpoint`` takes it
        (docs/other_models.md); TorchScript and ``torch.export`` files run code of their authors.
    slide : str or path, or PatchStore
        A slide file, or an open patch store.
    tile : TileConfig, optional
        How the slide is cut: stride, tissue, edges. Patch size and resolution are always
        the checkpoint's, and no pixels are stored. Not with a patch store.
    mpp : µm per level-0 px, optional
        Overrides the slide file's own. Not with a patch store.
    architecture : str, optional
        Network of a plain state dict.
    positive : sequence of str
        Classes of a model of another program whose probabilities add up to the score.
    calibrated : bool
        Divide the logits by the temperature that training fitted on its validation patches, so
        that scores are probabilities where the classes are as frequent as there.
    device : str
        ``auto`` (the first CUDA device, or the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
    precision : {"auto", "fp32", "bf16", "fp16"}
        ``auto``: fp32 on the CPU; on a GPU bf16, or fp16 where it has no bf16.
    batch_size : patches, optional
        Default: by the device, the patch size and the model's layers.
    readers : int, optional
        Threads that read the slide; default: the cores, at least two.
    on_progress : function, optional
        Called with patches done and patches to do.

    Returns
    -------
    scores : Scores
        ``coords`` (N, 2) int64, top-left corners (x, y) in level-0 px, and ``scores`` (N,) float32
        in [0, 1], higher is more suspicious; NaN where a patch is unreadable. `build_heatmap` takes
        it as it is; `wsi_pipeline.inference.scores.write_scores` writes it.

    Raises
    ------
    SlideError, GridError, TissueError
        If the slide cannot be opened, has no resolution, or no patch with tissue.
    CheckpointError
        If the checkpoint is missing, damaged or of an unknown model, or has no temperature that
        calibrated scores need.
    ConfigError
        If the device is not there, a setting is out of range, or `tile` or `mpp` come with a store.
    InferenceError
        If the patches are not such as the model was trained on, or cannot be read.
    """
    settings = PredictConfig(
        batch_size=batch_size, precision=precision, readers=readers, calibrated=calibrated
    )
    target = resolve_device(device)
    exact = resolve_precision(precision, target)
    if isinstance(checkpoint, tuple):
        model, meta = checkpoint
        checkpoint_digest = digest_model(model, meta)
    else:
        checkpoint = local_path(checkpoint, "checkpoints")
        model, meta, checkpoint_digest = _load(checkpoint, architecture, positive)
    temperature = None
    if calibrated:
        name = f"the {meta.model} given" if isinstance(checkpoint, tuple) else Path(checkpoint)
        temperature = require_temperature(meta, name)
    network, classes, chosen = with_classes(model)
    with _open_patches(slide, meta, tile, mpp) as store:
        meta = fit_meta(meta, store.kind)
        patches = normalise_patches(store, stain_method(model))
        values, summary = predict_store(
            network,
            meta,
            patches,
            device=target,
            precision=exact,
            batch_size=batch_size,
            readers=readers or max(2, count_cores()),
            temperature=temperature,
            columns=1 + len(classes) if classes else None,
            tolerance=settings.tolerance,
            max_unreadable=store.tiling["max_unreadable"],
            on_progress=on_progress,
        )
        if far := find_far(patches, meta.card):
            log.warning("%s: %s", store.slide_id, far)
        check = summary.precision_check
        return make_scores(
            store,
            values,
            meta,
            checkpoint_digest,
            precision=exact,
            precision_check=check.as_plain() if check else None,
            fingerprint=digest_settings(
                store.fingerprint, checkpoint_digest, *score_settings(settings)
            ),
            classes=classes,
            positive=chosen,
            temperature=temperature,
            far_from_training=far,
        )


def _load(
    path: Path, architecture: str | None, positive: Sequence[str]
) -> tuple[PatchClassifier, CheckpointMeta, str]:
    """Load a checkpoint, or a model of another program; also return its digest."""
    path = find_model(path)
    external = open_external(path, architecture=architecture, positive=positive)
    if external is None:
        return *load_checkpoint(path), digest(path)
    if trust := external.describe_trust():
        log.warning("%s", trust)
    return load_external(external), external.meta, external.digest


@contextmanager
def _open_patches(
    slide: StrPath | PatchStore, meta: CheckpointMeta, tile: TileConfig | None, mpp: float | None
) -> Iterator[PatchStore]:
    """Open a slide's patches as a checkpoint needs them; a store stays open, as it was."""
    if isinstance(slide, PatchStore):
        for name, value in (("tile", tile), ("mpp", mpp)):
            if value is not None:
                raise ConfigError(
                    f"{slide.info.slide_id}: {name} cannot be combined with a patch store, which "
                    f"is cut already; leave {name} out, or give the slide's file"
                )
        yield slide
        return
    path = local_path(slide, "slides")
    cut = tile or TileConfig()
    if meta.patch_px:
        cut = replace(cut, patch_px=meta.patch_px, target_mpp=meta.target_mpp)
    if cut.target_mpp <= 0 or meta.image_shape is not None:
        raise InferenceError(
            f"{path.name}: the checkpoint of {meta.model} was trained on single images, so the "
            "patches of a slide are undefined; use a checkpoint trained on patches"
        )
    cut = replace(cut, store="coords")
    with tempfile.TemporaryDirectory() as folder:
        where, content = Path(folder) / "patches.zarr", Path(folder) / "content.json"
        try:
            tile_slide(
                path,
                where,
                config=cut,
                mpp=mpp,
                content_cache=content,
                threads=count_cores(),
            )
        except PatchSizeError as error:
            raise GridError(f"{error.fact}; {error.remedy_if_fixed}") from error
        with PatchStore.open(where, slide_path=path, content_cache=content) as store:
            yield store
