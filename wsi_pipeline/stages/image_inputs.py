"""What the stages read of a folder of images, and which settings matter there."""

import logging

from tiling.files import (
    digest_file,
)
from wsi_pipeline.cohort.image_folder import (
    ALL,
)
from wsi_pipeline.config.reading import Config, as_plain, digest_settings, name_changes
from wsi_pipeline.errors import (
    StageError,
)
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.state import (
    check_unit,
)

log = logging.getLogger(__name__)

# Settings that matter to single images; the others of these sections are of slides alone.
USED: dict[str, tuple[str, ...]] = {
    "tile": (),
    "predict": ("batch_size", "precision", "tolerance", "readers", "splits"),
    "heatmap": ("maps_per_class", "method"),
    "evaluate": ("split", "image_threshold", "bootstrap", "stratified", "seed"),
    "report": (),
}


def warn_of_unused(config: Config, section: str) -> None:
    """Name settings that were changed and do nothing to single images."""
    changed = name_changes(as_plain(getattr(config, section)), section)
    names = dict.fromkeys(change.partition("=")[0] for change in changed)
    unused = [f"{section}.{name}" for name in names if name.split(".")[0] not in USED[section]]
    if unused:
        log.warning("no effect on a folder of images: %s", ", ".join(unused))


def is_image_run(run: RunFolder) -> bool:
    """Tell whether a run folder is of images."""
    return run.images.is_file()


def data_fingerprint(run: RunFolder) -> str:
    """Hash the pixels' origin and the table of classes, patients and splits; verify the pixels."""
    from wsi_pipeline.cohort.image_store import read_about

    path = run.tiles / "images.json"
    if not path.is_file() or not Unit("tile", ALL).is_marked(run):
        raise StageError(
            f"{run.path}: its images are not prepared; run: wsi-pipeline tile FOLDER --out "
            f"{run.path}"
        )
    require_sound(run, Unit("tile", ALL))
    return digest_settings(read_about(run.tiles), digest_file(run.images))


def require_sound(run: RunFolder, unit: Unit) -> None:
    """Refuse files that are not as a stage wrote them."""
    if problems := check_unit(run, unit):
        raise StageError(f"{'; '.join(map(str, problems))}; run {unit.stage} again")
