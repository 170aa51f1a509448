"""What the models of a run would cost: a short probe of each on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_pipeline.config.extras import explain_missing
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.settings import TrainConfig, fill_in_sampling
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.planning.figures import ModelPlan, SlidePlan, to_predict

if TYPE_CHECKING:
    from torch import Tensor

MODEL_PROBE_S, MOST_PASSES = 5.0, 6  # per model, and per its frozen blocks


def plan_models(
    slides: Sequence[SlidePlan],
    config: Config,
    device: str,
    *,
    shape: tuple[int, int, int],
    n_trained: int,
) -> list[ModelPlan]:
    """Plan the models of a config.

    Parameters
    ----------
    slides : sequence of SlidePlan
    config : Config
    device : str
    shape : (height, width, channels), px
        Of patches or images.
    n_trained : int
        Patches or images to train on.
    """
    n_predicted = sum(s.patches for s in to_predict(slides, config))
    stages = set(config.stages)
    if not stages & {"train", "predict"} or not n_predicted:
        return []
    found = []
    for name, given in config.train.items():
        settings = fill_in_sampling(given, images=config.images is not None)
        drawn = settings.steps_per_epoch * settings.batch_size
        per_epoch = n_trained if settings.sampling == "shuffle" else drawn
        n_all = settings.max_epochs * per_epoch if "train" in stages else 0
        n_scored = n_predicted if "predict" in stages else 0
        planned = ModelPlan(name, None, n_all, n_scored)
        try:
            planned = _time_model(planned, settings, shape, device, n_trained)
        except (PipelineError, RuntimeError) as error:
            planned = replace(planned, problem=str(error))
        except ModuleNotFoundError as error:
            message = explain_missing(error, "train" if "train" in stages else "predict")
            if message is None:
                raise
            planned = replace(planned, problem=message)
        found.append(planned)
    return found


def _time_model(
    planned: ModelPlan,
    settings: TrainConfig,
    shape: tuple[int, int, int],
    device: str,
    n_trained: int,
) -> ModelPlan:
    """Time a model's forward pass on noise, and that of its frozen blocks alone."""
    import torch

    from wsi_pipeline.config.devices import resolve_device
    from wsi_pipeline.config.reading import as_plain
    from wsi_pipeline.models import BlockClassifier, build_model, check_image_size

    check_image_size(settings.model, shape[:2])
    place = resolve_device(device)
    model = build_model(
        settings.model.name,
        preprocess=as_plain(settings.model.preprocess),
        **settings.model.options,
    )
    model = model.to(place).eval()
    n_patches = 8 if place.type == "cuda" else 1
    height, width, channels = shape
    batch = torch.rand(n_patches, channels, height, width, device=place)
    with torch.inference_mode():
        each = _time_passes(lambda: model.score(batch).sum()) / n_patches
        if not settings.freeze or not isinstance(model, BlockClassifier):
            return replace(planned, seconds_per_patch=each)
        n_frozen = model.n_blocks if settings.freeze == "all" else settings.freeze
        frozen = _time_passes(lambda: model.encode(batch, n_frozen).sum()) / n_patches
        map_bytes = model.encode(batch[:1], n_frozen).nbytes if place.type == "cpu" else 0
    return replace(
        planned,
        seconds_per_patch=each,
        frozen_seconds_per_patch=min(frozen, each),
        frozen_patches=_count_encoded(planned.train_patches, settings, n_trained, map_bytes),
    )


def _count_encoded(n_drawn: int, settings: TrainConfig, n_trained: int, map_bytes: int) -> int:
    """Count the patches that pass through frozen blocks, in a whole training.

    Parameters
    ----------
    n_drawn : int
        Patches of all steps.
    settings : TrainConfig
    n_trained : int
        Different patches.
    map_bytes : int
        Of the maps of one patch; 0 if they are not kept (`wsi_pipeline.training.frozen_maps`).
    """
    from wsi_pipeline.training.fine_tuning import can_recur
    from wsi_pipeline.training.frozen_maps import MOST_BYTES

    if not map_bytes or not can_recur(settings):
        return n_drawn
    augment = settings.augment
    turned = 4 if augment.flips else 2 if augment.rotate_180 else 1  # each is kept by itself
    n_different = min(n_drawn, turned * n_trained)
    n_kept = min(n_different, MOST_BYTES // map_bytes)
    if n_kept == n_different:
        return n_different
    return n_kept + round((n_drawn - n_kept) * (1 - n_kept / n_different))


def _time_passes(work: Callable[[], "Tensor"]) -> float:
    """Time a pass: the shortest of some, in seconds."""
    # The first pass also sets up the kernels; it counts only where there is time for no other.
    times = [_time_pass(work)]
    while len(times) < MOST_PASSES and sum(times) + times[-1] < MODEL_PROBE_S:
        times.append(_time_pass(work))
    return min(times)


def _time_pass(work: Callable[[], "Tensor"]) -> float:
    started = time.monotonic()
    float(work())  # waits for the device
    return time.monotonic() - started
