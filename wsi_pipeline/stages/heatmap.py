"""The stage ``heatmap``: scores -> heatmaps; of images, maps of where a model looks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tiling.contracts import OnProgress
from tiling.wording import format_number, pluralize
from wsi_pipeline.cohort.kinds import ImageCohort, cohort_of
from wsi_pipeline.cohort.slides import entries_in_shard, open_store, slide_bytes
from wsi_pipeline.cohort.stain_view import fit_slide_map, normalise_patches, stain_method
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import (
    OWN_METHOD,
    HeatmapConfig,
    slide_heatmap_settings,
    slide_map_method,
)
from wsi_pipeline.contracts import Heatmap, Scores, SlideEntry
from wsi_pipeline.errors import ConfigError, HeatmapError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.tasks import Done, Job, NetworkTask
from wsi_pipeline.stages.image_maps import map_images
from wsi_pipeline.stages.inputs import (
    build_store_heatmap,
    choose_scored_models,
    digest_scores,
    digest_scores_by_origin,
    name_unscored,
    scored,
    scored_before,
    why_unscored,
)
from wsi_pipeline.stages.model_sources import load_model
from wsi_pipeline.stages.tile import check_map_names

if TYPE_CHECKING:
    from tiling.store import PatchStore
    from wsi_pipeline.models import PatchClassifier

MAP_STEP_PX = 16  # of a pixel of a model's own map: VGG's stride before its last pooling


@dataclass(frozen=True)
class BuildHeatmap(NetworkTask):
    """Build the heatmap of one slide."""

    counted: ClassVar[str] = "part"
    entry: SlideEntry
    model: str
    config: HeatmapConfig
    device: str
    method: str | None = None  # of a map by the model itself, next to that of the scores

    @property
    def unit(self) -> Unit:
        """The slide, by the model."""
        return Unit("heatmap", self.entry.slide_id, self.model)

    @property
    def weight(self) -> int:
        """Size of the slide's file."""
        return slide_bytes(self.entry)

    @property
    def on_gpu(self) -> bool:
        """Where a network draws the map, unless the CPU is asked for."""
        return self.method is not None and super().on_gpu

    def fingerprint(self, run: RunFolder) -> str:
        """Hash scores and settings."""
        scores = digest_scores(run, self.model, self.entry.slide_id)
        return digest_settings(scores, self._settings())

    def earlier_fingerprint(self, run: RunFolder) -> str:
        """Hash what the scores were made from, and the settings."""
        origin = digest_scores_by_origin(run, self.model, self.entry.slide_id)
        return digest_settings(origin, self._settings())

    def _settings(self) -> dict[str, Any]:
        """Return what the files depend on; of PatchNet's own map, as before there were others."""
        config = self.config
        named = None if self.method == "patchnet" else self.method
        if self.method is None:
            config = replace(config, layer=None, filters=())
        return slide_heatmap_settings(replace(config, method=named))

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the values and a picture; of the model's own map too, where asked for."""
        from wsi_pipeline.heatmaps.files import write_heatmap
        from wsi_pipeline.heatmaps.overlays import draw_overlay
        from wsi_pipeline.inference.scores import read_scores

        entry, config, model = self.entry, self.config, self.model
        scores = read_scores(job.run.scores(model, entry.slide_id))
        values = job.run.heatmap(model, entry.slide_id)
        picture = job.run.overlay(model, entry.slide_id)
        with open_store(job.run, entry) as store:
            heatmap = build_store_heatmap(scores, store, config)
            about: dict[str, Any] = {"mpp": store.info.mpp, "outlines": _outlines(entry, store)}
            thumbnail = _thumbnail(entry, store.info.mpp, config.thumbnail_px)
            write_heatmap(values, heatmap, mpp=store.info.mpp, name=entry.slide_id)
            draw_overlay(picture, heatmap, thumbnail, title=f"{entry.slide_id}, {model}", **about)
            height, width = heatmap.values.shape
            files = [values, picture]
            line = f"{width} x {height} px, highest score {_hottest(scores.scores)}"
            if self.method is None:
                return files, line
            network = self._load_network(job, scores)
            if self.method == "patchnet":
                mapped = self._map_densely(network, store, on_progress)
            else:
                mapped = self._map_patches(network, store, scores, on_progress)
            for made in mapped.maps:
                values = job.run.method_map(model, entry.slide_id, made.name)
                picture = job.run.method_overlay(model, entry.slide_id, made.name)
                mpp, label = store.info.mpp, made.label
                write_heatmap(values, made.heatmap, mpp=mpp, name=entry.slide_id, channel=label)
                title = f"{entry.slide_id}, {model}, {label}"
                about |= {"title": title, "limits": made.limits, "label": label}
                draw_overlay(picture, made.heatmap, thumbnail, **about)
                files += [values, picture]
        lost = f", {mapped.n_unreadable} unreadable" if mapped.n_unreadable else ""
        line += f"; {self.method} of {pluralize(mapped.n_mapped, 'patch')}{lost}"
        return files, line

    def _load_network(self, job: Job, scores: Scores) -> "PatchClassifier":
        """Load the model that the scores are by."""
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.models.checkpoint import digest

        entry = self.entry
        checkpoint = job.run.checkpoint(self.model)
        if not checkpoint.is_file():
            raise HeatmapError(
                f"{entry.slide_id}: a map by {self.method} needs the checkpoint of {self.model} in "
                f"the run; copy the one that predict was given to {checkpoint}"
            )
        found = digest(checkpoint)
        if found != scores.attributes.get("checkpoint"):
            raise HeatmapError(
                f"{entry.slide_id}: its scores were made with another checkpoint than "
                f"{checkpoint}; "
                "run predict again"
            )
        model, _ = load_model(checkpoint, found)
        placed: PatchClassifier = model.to(resolve_device(self.device))
        return placed

    def _map_densely(
        self, network: "PatchClassifier", store: "PatchStore", on_progress: OnProgress
    ) -> "_Mapped":
        """Map PatchNet around every so many pixels of the patches, without seams."""
        from tiling.slide import open_slide
        from wsi_pipeline.heatmaps.dense_maps import check_mappable, map_slide

        with open_slide(self.entry.path) as slide:
            found = map_slide(
                check_mappable(network),
                slide,
                store.coords,
                geometry=store.geometry,
                step_px=self.config.dense_step_px or MAP_STEP_PX,
                stain_map=fit_slide_map(store, stain_method(network)),
                device=next(network.parameters()).device,
                filters=self.config.filters,
                on_progress=on_progress,
            )
        maps = [_SlideMap("patchnet", "Q of each patch", found.heatmap, (0, 1))]
        maps += [
            _SlideMap(f"patchnet.filter_{number}", f"filter {number}", heatmap, (-1, 1))
            for number, heatmap in found.filters.items()
        ]
        return _Mapped(maps, found.n_mapped, found.n_unreadable)

    def _map_patches(
        self,
        network: "PatchClassifier",
        store: "PatchStore",
        scores: Scores,
        on_progress: OnProgress,
    ) -> "_Mapped":
        """Explain each scored patch, and stitch the maps."""
        from wsi_pipeline.explain import load_method
        from wsi_pipeline.explain.pictures import find_limits
        from wsi_pipeline.heatmaps.stitched_maps import stitch_maps

        method = load_method(self.method or "")
        settings = method.choose_settings(self.config.layer)
        rows = np.flatnonzero(np.isfinite(scores.scores))
        patches = normalise_patches(store, stain_method(network))
        unreadable = 0

        def explain_each() -> Iterator[tuple[tuple[float, float], Any]]:
            nonlocal unreadable
            for number, row in enumerate(rows):
                pixels = np.empty((1, *store.kind.shape), np.uint8)
                if patches.read_into(rows[number : number + 1], pixels)[0]:
                    unreadable += 1
                    continue
                (values,) = method(network, pixels, config=settings)
                x, y = store.coords[row]
                down = (pixels.shape[1] - len(values)) // 2  # of a model that crops
                across = (pixels.shape[2] - values.shape[1]) // 2
                yield (x + across * scale[0], y + down * scale[1]), values
                on_progress(number + 1, len(rows))

        scale = store.geometry.scale
        heatmap = stitch_maps(
            explain_each(),
            slide_size=store.info.size,
            scale=scale,
            step_px=self.config.dense_step_px or MAP_STEP_PX,
        )
        known = heatmap.values[np.isfinite(heatmap.values)]
        limits = (0.0, 1.0)
        if not method.is_probability and known.size:
            limits = find_limits([known], signed=method.low < 0)
        name = self.method or ""
        return _Mapped([_SlideMap(name, name, heatmap, limits)], len(rows) - unreadable, unreadable)


@dataclass(frozen=True)
class _SlideMap:
    """One map of a slide by the model itself."""

    name: str  # part of its files' names
    label: str
    heatmap: Heatmap
    limits: tuple[float, float]  # of its picture's colours


@dataclass(frozen=True)
class _Mapped:
    maps: "list[_SlideMap]"
    n_mapped: int  # patches
    n_unreadable: int


def _hottest(scores: Any) -> str:
    return format_number(np.nanmax(scores)) if np.isfinite(scores).any() else "not scored"


def _thumbnail(entry: SlideEntry, mpp: tuple[float, float], longest_px: int) -> Any:
    from tiling.overview import read_thumbnail
    from tiling.slide import open_slide

    with open_slide(entry.path) as slide:
        longest_um = max(side * axis for side, axis in zip(slide.size, mpp, strict=True))
        thumbnail, _ = read_thumbnail(slide, mpp=mpp, target_mpp=longest_um / longest_px)
    return thumbnail


def _outlines(entry: SlideEntry, store: "PatchStore") -> list[Any]:
    """Rings of the annotated tumour, (n, 2) level-0 px each."""
    if entry.annotation is None:
        return []
    from shapely import get_parts

    from tiling.annotation.slide_annotation import read_annotation_of_store

    parts = get_parts(read_annotation_of_store(entry.annotation, store).tumour)
    rings = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    return [np.asarray(ring.coords) for ring in rings]


def heatmap(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Scores -> heatmaps; of images, maps of those models that have any."""
    cohort = cohort_of(run)
    check_map_method(config)
    if isinstance(cohort, ImageCohort):
        named = choose_scored_models(run, models)
        return map_images(cohort.prepared(), config, options, models=named)
    entries = cohort.entries
    check_map_names(config, entries)
    by_id = {e.slide_id: e for e in entries}
    mine = [e.slide_id for e in entries_in_shard(entries, options.shard)]
    chosen = choose_scored_models(run, models, options)
    methods, notes = _choose_methods(run, chosen, config)
    tasks = [
        BuildHeatmap(by_id[slide_id], model, config.heatmap, options.device, methods[model])
        for model in chosen
        for slide_id in scored(run, model, mine)
    ]
    if not (tasks or scored_before(run, options) or any(scored(run, m, by_id) for m in chosen)):
        raise StageError(f"{run.path}: nothing to heatmap: {why_unscored(run, chosen, by_id)}")
    result = run_stage("heatmap", run, tasks, config, options, of_shard=True)
    return replace(result, notes=(*notes, *name_unscored(run, chosen, mine)))


def check_map_method(config: Config) -> None:
    """Refuse settings of a model's own map that would do nothing."""
    from wsi_pipeline.explain import check_layer, check_method

    chosen = config.heatmap
    own = chosen.method in (None, OWN_METHOD)
    if chosen.method is not None and not own:
        check_method(chosen.method)
        check_layer("heatmap.layer", chosen.layer, [chosen.method])
    if chosen.filters and slide_map_method(chosen) not in (OWN_METHOD, "patchnet"):
        raise ConfigError(
            f"heatmap.filters are PatchNet's; set heatmap.method=patchnet, not {chosen.method}"
        )


def _choose_methods(
    run: RunFolder, models: Sequence[str], config: Config
) -> tuple[dict[str, str | None], list[str]]:
    """Choose how each model's slides are mapped, and note which are not that should be."""
    method = slide_map_method(config.heatmap)
    chosen: dict[str, str | None] = dict.fromkeys(models, method)
    if method is None:
        return chosen, []
    from wsi_pipeline.explain import choose_method, load_method
    from wsi_pipeline.models import find_architecture
    from wsi_pipeline.models.checkpoint import read_meta

    notes = []
    for model in models:
        if (path := run.checkpoint(model)).is_file():  # else its tasks name what to do
            name = read_meta(path).model
            own = choose_method(find_architecture(name)) if method == OWN_METHOD else method
            if own and load_method(own).explains(find_architecture(name)):
                chosen[model] = own
            else:
                chosen[model] = None
                notes.append(f"no {own} of {model}: it does not explain the architecture {name}")
    return chosen, notes
