"""Maps of where a model looks in single images: what the stage ``heatmap`` makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tiling.contracts import OnProgress
from tiling.files import digest_file, write_json
from tiling.wording import pluralize
from wsi_pipeline.cohort.image_folder import ALL, ImageEntry
from wsi_pipeline.cohort.kinds import ImageCohort, warn_of_unused
from wsi_pipeline.cohort.stain_view import normalise_image, stain_method
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import OWN_METHOD, EvaluatedSplit
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.parts import (
    Part,
    merge_parts,
    part_path,
    run_in_parts,
    share_of,
    unit_of_part,
    write_part,
)
from wsi_pipeline.run.runner import Options, StageResult
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.tasks import Done, Job, NetworkTask


@dataclass(frozen=True)
class MapImages(NetworkTask):
    """Draw where one model looks in some images."""

    noun: ClassVar[str] = "model"
    counted: ClassVar[str] = "image"
    model: str
    cohort: ImageCohort
    checkpoint: Path
    method: str
    layer: str | None
    most: int | None  # of each class
    split: EvaluatedSplit | None
    device: str
    part: Shard | None = None  # of one task of a job array

    @property
    def unit(self) -> Unit:
        """All images, by the model; or a part of them."""
        return unit_of_part(Unit("heatmap", ALL, self.model), self.part)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash images, checkpoint, and which images are shown."""
        from wsi_pipeline.explain.files import MAPS_SCHEMA

        return digest_settings(
            self.cohort.digest(),
            digest_file(self.checkpoint),
            self.most,
            MAPS_SCHEMA,
            self.method,
            *([self.split] if self.split else []),
            *([self.layer] if self.layer else []),
            *([self.part] if self.part else []),
        )

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the maps of each image and an overview."""
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.explain import load_method
        from wsi_pipeline.explain.files import MAPS_SCHEMA
        from wsi_pipeline.explain.image_maps import write_image_map
        from wsi_pipeline.models.checkpoint import digest, load_checkpoint

        run = job.run
        entries, images = self.cohort.entries, self.cohort.array()
        network, _ = load_checkpoint(self.checkpoint)
        network = network.to(resolve_device(self.device))
        every = choose_shown(entries, images.unreadable, self.most, split=self.split)
        rows = share_of(every, self.part)
        folder = run.image_maps(self.model)
        (folder / "maps.json").unlink(missing_ok=True)  # it speaks of maps that are about to go
        files: list[Path] = []
        shown = []
        try:
            for number, row in enumerate(rows):
                pixels = np.array(images.pixels[row])
                name = entries[row].image_id
                pixels = normalise_image(pixels, stain_method(network), name=name)
                made, picture, grey = write_image_map(
                    folder,
                    name,
                    network,
                    pixels,
                    self.method,
                    layer=self.layer,
                )
                files += made
                shown.append((entries[row], picture, grey))
                on_progress(number + 1, len(rows))
        except BaseException:  # no mark will list them
            _remove(files)
            raise
        about = {
            "schema": MAPS_SCHEMA,
            "checkpoint": digest(self.checkpoint),
            "method": self.method,
            "probability": load_method(self.method).is_probability,
            "images": [entries[row].image_id for row in every],
        }
        if self.part is None:
            files += _finish_maps(folder, shown, about)
        else:
            whole = replace(self, part=None)
            found = {"fingerprint": whole.fingerprint(run), "data": self.cohort.digest()}
            arrays = {f"picture_{n}": picture for n, (_, picture, _) in enumerate(shown)}
            arrays |= {f"map_{n}": grey for n, (_, _, grey) in enumerate(shown)}
            names = [path.relative_to(run.path).as_posix() for path in files]
            files.append(part_path(run, whole.unit, self.part))
            write_part(
                files[-1], self.part.count, about | found, arrays | {"files": np.array(names, "U")}
            )
        return files, f"maps of {pluralize(len(rows), 'image')}"


def _finish_maps(folder: Path, shown: Sequence[Any], about: Mapping[str, Any]) -> list[Path]:
    """Draw the overview of all maps and, last, write what they are."""
    from wsi_pipeline.explain.image_maps import draw_overview

    files = [draw_overview(folder / "overview.png", shown), folder / "maps.json"]
    write_json(files[1], about)
    return files


def merge_maps(run: RunFolder, model: str) -> bool:
    """Finish the maps that the tasks of a job array have drawn, if they are all there."""
    cohort = ImageCohort(run)

    def write(parts: list[Part]) -> list[Path]:
        by_id = {e.image_id: e for e in cohort.entries}
        about = {k: v for k, v in parts[0].about.items() if k not in ("fingerprint", "data")}
        drawn = [
            (part.arrays[f"picture_{n}"], part.arrays[f"map_{n}"])
            for part in parts
            for n in range((len(part.arrays) - 1) // 2)
        ]
        shown = [(by_id[i], *both) for i, both in zip(about["images"], drawn, strict=True)]
        files = [run.path / name for part in parts for name in part.arrays["files"].tolist()]
        return files + _finish_maps(run.image_maps(model), shown, about)

    return merge_parts(run, Unit("heatmap", ALL, model), write, is_current=cohort.is_still)


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def choose_shown(
    entries: Sequence[ImageEntry],
    unreadable: Any,
    most: int | None,
    *,
    split: EvaluatedSplit | None = None,
) -> list[int]:
    """Choose the first `most` readable images of each class, of the split that is evaluated.

    Not set: of the test split where there is one, else of val, else of all.
    """
    splits = {e.split for e in entries}
    name = split or next((s for s in ("test", "val") if s in splits), "all")
    rows = [
        row for row, e in enumerate(entries) if name in (e.split, "all") and not unreadable[row]
    ]
    chosen: list[int] = []
    for label in (0, 1, -1):
        of_class = [row for row in rows if entries[row].label == label]
        chosen += of_class if most is None else of_class[:most]
    return chosen


def map_images(
    cohort: ImageCohort, config: Config, options: Options, *, models: Sequence[str]
) -> StageResult:
    """Checkpoints -> maps of some images, of the models that have any."""
    warn_of_unused(config, "heatmap")
    run = cohort.run
    reasons = {model: _why_no_maps(run, model, config) for model in models}
    notes = tuple(f"no maps of {model}: {reason}" for model, reason in reasons.items() if reason)
    mapped = [model for model, reason in reasons.items() if not reason]
    if not mapped:
        return StageResult("heatmap", (), (), (), notes)
    most, split = config.heatmap.maps_per_class, config.evaluate.split
    layer = config.heatmap.layer
    tasks = [
        MapImages(model, cohort, path, _method_of(path, config), layer, most, split, options.device)
        for model, path in ((model, run.checkpoint(model)) for model in mapped)
    ]
    result = run_in_parts("heatmap", run, tasks, config, options, merge=merge_maps)
    return replace(result, notes=(*notes, *result.notes))


def _method_of(checkpoint: Path, config: Config) -> str:
    """Return the method that maps a model's images: the config's, else the architecture's own."""
    from wsi_pipeline.explain import choose_method
    from wsi_pipeline.models import find_architecture
    from wsi_pipeline.models.checkpoint import read_meta

    named = config.heatmap.method
    if named not in (None, OWN_METHOD):
        return str(named)
    return choose_method(find_architecture(read_meta(checkpoint).model))


def _why_no_maps(run: RunFolder, model: str, config: Config) -> str:
    """Describe why a model with scores gets no maps; empty if it does."""
    from wsi_pipeline.explain import load_method
    from wsi_pipeline.inference.image_scores import read_scores
    from wsi_pipeline.inference.scores import TRAINED_ON
    from wsi_pipeline.models import find_architecture
    from wsi_pipeline.models.checkpoint import read_meta

    path = run.checkpoint(model)
    _, about = read_scores(run.image_scores(model))
    if not path.is_file() and TRAINED_ON not in about:
        return "it is a model of another program, whose maps are not computed"
    if not path.is_file():
        return (
            "its scores are by a checkpoint outside the run; copy that file to "
            f"models/{model}/{path.name} and run heatmap again"
        )
    name = read_meta(path).model
    method = _method_of(path, config)
    if not load_method(method).explains(find_architecture(name)):
        return f"{method} does not explain the architecture {name}; set another heatmap.method"
    if about["checkpoint"] != digest_file(path):
        return f"its scores are by another checkpoint than models/{model}; run predict again"
    return ""
