"""What the models of a run would cost: a short probe of each on this machine."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsi_pipeline.config.extras import explain_missing
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.settings import TrainConfig, fill_in_sampling
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.planning.figures import ModelPlan, SlidePlan, to_predict

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_pipeline.models import PatchClassifier

MODEL_PROBE_S = 5.0  # per model


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
        try:
            each, problem = _time_model(settings, shape, device), ""
        except (PipelineError, RuntimeError) as error:
            each, problem = None, str(error)
        except ModuleNotFoundError as error:
            message = explain_missing(error, "train" if "train" in stages else "predict")
            if message is None:
                raise
            each, problem = None, message
        n_scored = n_predicted if "predict" in stages else 0
        found.append(ModelPlan(name, each, n_all, n_scored, problem))
    return found


def _time_model(settings: TrainConfig, shape: tuple[int, int, int], device: str) -> float:
    """Time a model's forward pass on noise: seconds per patch."""
    import torch

    from wsi_pipeline.config.devices import resolve_device
    from wsi_pipeline.config.reading import as_plain
    from wsi_pipeline.models import build_model, check_image_size

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
        # The first pass also sets up the kernels; it counts only where there is time for no other.
        times = [_time_pass(model, batch)]
        while len(times) < 6 and sum(times) + times[-1] < MODEL_PROBE_S:
            times.append(_time_pass(model, batch))
    return min(times) / n_patches


def _time_pass(model: "PatchClassifier", batch: "Tensor") -> float:
    started = time.monotonic()
    float(model.score(batch).sum())  # waits for the device
    return time.monotonic() - started
