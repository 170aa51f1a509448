"""One cohort, its outlines in either frame: every stage gives the same result."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.annotation_files import write_geojson
from tests.helpers.tiny_cohort import CONFIG, TUMOUR, draw_cohort
from tiling.readers import openslide_reader
from wsi_pipeline.cli.app import main

BOUNDS = (24, 40, 380, 290)  # x, y, width, height


@pytest.fixture
def scanned_part(monkeypatch):
    monkeypatch.setattr(openslide_reader, "_read_bounds", lambda properties: BOUNDS)


def draw(folder: Path, corner: tuple[int, int]) -> Path:
    draw_cohort(folder)
    for number in (1, 3, 5):
        write_geojson(folder / f"s{number}.geojson", {"Tumor": np.array(TUMOUR, float) - corner})
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(".xml", ".geojson"))
    return folder


@pytest.mark.slow
def test_labels_heatmaps_and_figures_are_the_same_from_either_frame(tmp_path, scanned_part):
    outputs = []
    for origin, corner in (("level0", (0, 0)), ("bounds", BOUNDS[:2])):
        data, run = draw(tmp_path / origin, corner), tmp_path / f"run_{origin}"
        config = tmp_path / f"{origin}.yaml"
        config.write_text(CONFIG.format(data=data, run=run))
        message = ["--quiet", "--set", f"tile.annotation_origin={origin}"]
        assert main(["run", str(config), *message]) == 0
        outputs.append(run)

    names = [f"heatmaps/patchnet/s{n}.png" for n in range(2, 6)]  # with the outlines
    names += [f"evaluation/patchnet/{n}" for n in ("metrics.json", "froc.json", "lesions.csv")]
    names += [f"tiles/label_audit/{n}" for n in ("slides.csv", "ambiguous.csv", "ambiguous.png")]
    for name in names:
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes(), name


def test_slides_proposes_an_annotation_that_fits_only_the_scanned_part(
    tmp_path, scanned_part, monkeypatch
):
    import wsi_pipeline.planning.triage as triage

    folder = tmp_path / "data"
    draw_cohort(folder)
    over = np.array([(-10, -30), (-4, -30), (-4, -20), (-10, -20)], float)  # off the slide itself
    path = write_geojson(folder / "s1.geojson", {"Tumor": over})
    with openslide_reader.OpenSlideReader(folder / "s1.tif") as slide:
        _, notes = triage._check_annotation(path, slide)
    assert "tile.annotation_origin=bounds" in notes[-1]
