"""What `tile` writes besides patch stores and their pictures: the label audit, and the run's own.

The audit's files are made in memory by the code that writes them. The run's own files (settings,
manifest, marks, tracebacks) are few and short: their number is exact, their length about right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiling.annotation.audit import Ambiguous
from tiling.contracts import Footprint, TileConfig
from tiling.errors import SlideError
from wsi_pipeline.config.reading import Config
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.run.cluster import map_tasks
from wsi_pipeline.stages.label_audit import Audited, choose, has_labels, make_files, make_sample

if TYPE_CHECKING:
    from wsi_pipeline.planning.figures import SlidePlan
    from wsi_pipeline.stages.audit_pictures import Sample

# As found in runs: settings, a manifest's row, a mark that a slide is done, a failure with its log.
SETTINGS_BYTES, ROW_BYTES, MARK_BYTES, FAILURE_BYTES = 2_800, 90, 140, 2_300
DIGEST_BYTES = 201  # of a slide's digest


NOTHING = Footprint(0, 0)


@dataclass(frozen=True)
class SampleTask:
    """A patch that the audit's sheet will show."""

    audited: Audited
    patch: Ambiguous
    config: TileConfig


def plan_extra_files(
    slides: "Sequence[SlidePlan]",
    audited: Sequence[Audited],
    config: Config,
    entries: Sequence[SlideEntry],
    *,
    workers: int,
) -> Footprint:
    """Estimate the files of `tile` other than stores; empty if nothing would be tiled."""
    tiled = [s for s in slides if not s.problem and s.state != "finished"]
    failing = [s for s in slides if s.problem]
    if not tiled and not failing:
        return NOTHING
    run = None if config.out is None else RunFolder(config.out)
    n_digests = sum(run is None or not run.content(s.slide_id).is_file() for s in tiled)
    own = _plan_own(len(tiled), len(failing), n_digests, config, len(entries))
    is_audited = tiled and has_labels(one.entry for one in audited)
    audit = _plan_audit(audited, config.tile, workers=workers) if is_audited else NOTHING
    return own + audit


def _plan_own(
    n_tiled: int, n_failing: int, n_digests: int, config: Config, n_entries: int
) -> Footprint:
    # A mark and a digest of each that is tiled, and failures.csv.
    files, size = n_tiled + n_digests + 1, n_tiled * MARK_BYTES + n_digests * DIGEST_BYTES
    run = None if config.out is None else RunFolder(config.out)
    if run is None or not run.manifest.is_file():  # run.json, slides.csv
        files, size = files + 2, size + SETTINGS_BYTES + n_entries * ROW_BYTES
    # A mark and a traceback of each that fails.
    return Footprint(files + 2 * n_failing, size + n_failing * FAILURE_BYTES)


def _plan_audit(audited: Sequence[Audited], config: TileConfig, *, workers: int) -> Footprint:
    chosen = choose(audited)
    tasks = [SampleTask(one, patch, one.entry.tile_config(config)) for one, patch in chosen]
    samples: dict[tuple[str, int], Sample] = {}
    for number, found in map_tasks(read_sample, tasks, workers=workers, apart=True):
        if not isinstance(found, StageError):
            one, patch = chosen[number]
            samples[one.entry.slide_id, patch.row] = found
    files = make_files(
        audited, lambda one, patch: samples.get((one.entry.slide_id, patch.row)) or _blank(patch)
    )
    sizes = [len(content) for content in files.values()]
    return Footprint(len(sizes) + 1, sum(sizes) + MARK_BYTES)  # and its mark


def read_sample(task: SampleTask) -> "Sample":
    """Read a patch that is not tiled yet, with the outlines over it."""
    from tiling.annotation.slide_annotation import read_slide_annotation
    from tiling.geometry import resolve_geometry
    from tiling.listing.content import UNREAD
    from tiling.patches import read_patch
    from tiling.slide import describe_slide, open_slide

    entry = task.audited.entry
    with open_slide(entry.path) as slide:
        info = describe_slide(
            slide, path=entry.path, slide_id=entry.slide_id, mpp=entry.mpp, content=UNREAD
        )
        geometry = resolve_geometry(task.config, slide_mpp=info.mpp)
        annotation, _ = read_slide_annotation(entry.annotation, info, task.config)
        try:
            pixels = read_patch(slide, task.audited.coords[task.patch.row], geometry=geometry)
        except SlideError:
            pixels = None
    tumour = None if annotation is None else annotation.tumour
    return make_sample(task.audited, task.patch, pixels=pixels, tumour=tumour, geometry=geometry)


def _blank(patch: Ambiguous) -> "Sample":
    """Placeholder for a patch whose slide crashed its process."""
    from wsi_pipeline.stages.audit_pictures import Sample

    share, around = patch.share, patch.neighbours
    return Sample(None, [], 0.5, patch.group, f"#{patch.row}", share, around)
