"""What the stages read: which slides are ready, their stores and scores, and digests of them."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from tiling.errors import of_damage
from tiling.files import digest_file
from tiling.threads import count_cores
from tiling.wording import name_some
from wsi_pipeline.cohort.image_folder import ALL
from wsi_pipeline.cohort.kinds import require_sound
from wsi_pipeline.config.settings import HeatmapConfig
from wsi_pipeline.contracts import Heatmap, Scores
from wsi_pipeline.errors import ScoresError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import check_twins
from wsi_pipeline.run.marks import read_mark
from wsi_pipeline.run.runner import Options
from wsi_pipeline.run.state import has_ended

if TYPE_CHECKING:
    from tiling.store import PatchStore

log = logging.getLogger(__name__)


def threads_per_slide(options: Options, n_slides: int) -> int:
    """Cores for each of the slides that are worked on at a time; 0: all that its worker has."""
    if options.dask not in (None, "local"):
        return 0
    return max(1, count_cores() // max(1, min(options.workers, n_slides)))


def check_device(options: Options, *precisions: str) -> None:
    """Raise an error if a device is not available, or does not support a precision.

    Workers on other machines check their own devices.
    """
    from wsi_pipeline.config.devices import resolve_device, resolve_precision

    if options.dask in (None, "local"):
        device = resolve_device(options.device)
        for precision in precisions:
            resolve_precision(precision, device)


def check_model_names(run: RunFolder, models: Iterable[str]) -> None:
    """Refuse models whose folders some file systems would take for those of others in the run.

    Raises
    ------
    ConfigError
        Naming both.
    """
    there = (name for folder in ("models", "scores") for name in run.models_with(folder))
    check_twins(
        dict.fromkeys((*there, *models)), f"{run.path}: the models", remedy="use one spelling"
    )


def choose_scored_models(
    run: RunFolder, names: Sequence[str], options: Options | None = None
) -> list[str]:
    """Choose the models named, or all that have scores.

    There may be none where `options` name a shard that ``predict`` has ended.
    """
    found = run.models_with("scores")
    if not found and options is not None and scored_before(run, options):
        return list(names)
    unknown = [name for name in names if name not in found]
    if unknown or not found:
        raise StageError(
            f"{run.path}: no scores of {', '.join(unknown) or 'any model'}; "
            f"run: wsi-pipeline predict {run.path}"
        )
    return list(names) or found


def scored_before(run: RunFolder, options: Options) -> bool:
    """Whether ``predict`` has ended the same shard, so that no scores means none to be expected."""
    shard = options.shard
    return shard is not None and has_ended(run, "predict", shard.index, shard.count)


def scored(run: RunFolder, model: str, slide_ids: Iterable[str]) -> list[str]:
    """Choose the slides that a model has scored and whose patch store is finished."""
    return [
        s
        for s in slide_ids
        if Unit("predict", s, model).is_marked(run) and Unit("tile", s).is_marked(run)
    ]


def name_unscored(
    run: RunFolder, models: Sequence[str], slide_ids: Iterable[str]
) -> tuple[str, ...]:
    """Name the slides that are not among the scored ones since their prediction failed."""
    slide_ids = list(slide_ids)

    def is_lost(unit: Unit) -> bool:
        return unit.mark(run, "failed").is_file() and not unit.is_marked(run)

    lost = {model: [s for s in slide_ids if is_lost(Unit("predict", s, model))] for model in models}
    return tuple(
        f"skipped {name_some(slides)}: prediction with {model} failed"
        for model, slides in lost.items()
        if slides
    )


def why_unscored(run: RunFolder, models: Sequence[str], slide_ids: Iterable[str]) -> str:
    """Explain why no slide is scored, though there are score files, and what to do."""
    slide_ids = list(slide_ids)
    again = f"run: wsi-pipeline predict {run.path}, with the same --checkpoint if it had one"
    failed = name_unscored(run, models, slide_ids)
    if failed:
        return f"{failed[0].removeprefix('skipped ')} (see {run.failures}); then {again}"
    untiled = [s for s in slide_ids if not Unit("tile", s).is_marked(run)]
    if len(untiled) == len(slide_ids):
        return f"no slide's patches are whole ({name_some(untiled)}); run tile again, then predict"
    if not any(run.scores(model, s).is_file() for model in models for s in slide_ids):
        none = f"no scores of {name_some(models)} for {name_some(slide_ids)}"
        return f"{none} (predict.splits chooses the slides); {again}"
    return f"the scores of {name_some(models)} were not finished; {again}"


def digest_scores(run: RunFolder, model: str, slide_id: str) -> str:
    """Hash the content of a slide's score file.

    Raises
    ------
    ScoresError
        If the file is missing or damaged. One that was edited by other programs is used, with a
        line in the log.
    """
    from wsi_pipeline.inference.scores import find_damage

    path, unit = run.scores(model, slide_id), Unit("predict", slide_id, model)
    mark = read_mark(unit.mark(run, "done"))
    if not path.is_file():
        raise ScoresError(f"{path}: no such score file; run predict first")
    if mark is not None and mark.damaged:
        raise ScoresError(f"{path} {'; '.join(mark.damaged)}; run predict again")
    found = digest_file(path)
    written = mark.sha256.get(path.relative_to(run.path).as_posix()) if mark is not None else None
    if written is not None and found != written:
        if damage := find_damage(path):
            raise of_damage(ScoresError(damage), path)
        log.warning("%s: not as predict wrote it, but consistent: used as an edited file", path)
    return found


def digest_image_scores(run: RunFolder, model: str) -> list[str]:
    """Hash the score table of single images.

    Raises
    ------
    StageError
        If it is not as predict wrote it.
    """
    require_sound(run, Unit("predict", ALL, model))
    return [digest_file(run.image_scores(model) / name) for name in ("images.csv", "images.json")]


def digest_scores_by_origin(run: RunFolder, model: str, slide_id: str) -> str:
    """Return the digest of what a slide's scores were made from, which earlier versions used."""
    from wsi_pipeline.inference.scores import read_scores

    return str(read_scores(run.scores(model, slide_id)).attributes.get("fingerprint"))


DigestScores = Callable[[RunFolder, str, str], str]


def build_store_heatmap(scores: Scores, store: "PatchStore", config: HeatmapConfig) -> Heatmap:
    """Build the heatmap of scores on the grid of their store."""
    from wsi_pipeline.heatmaps.rasters import rasterise_scores

    tile = store.geometry
    return rasterise_scores(
        scores.coords,
        scores.scores,
        slide_size=store.info.size,
        patch_l0=(tile.patch_l0, tile.patch_l0_y),
        stride_l0=(tile.stride_l0, tile.stride_l0_y),
        overlap=config.overlap,
    )
