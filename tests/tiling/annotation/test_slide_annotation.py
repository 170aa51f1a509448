"""The frames an annotation may be drawn in, from the file to the labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import slides
from tests.helpers.annotation_files import write_geojson
from tiling.annotation.formats.asap_xml import write_asap_xml
from tiling.annotation.reading import read_annotation
from tiling.annotation.slide_annotation import read_annotation_of_store
from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.errors import AnnotationError, GridError
from tiling.readers import openslide_reader
from tiling.store import PatchStore

CONFIG = TileConfig(target_mpp=0.5, patch_px=32, tissue=TissueConfig(mpp=2.0, min_object_um2=100.0))
BOUNDS = (37, 21, 200, 170)  # x, y, width, height
TUMOUR = np.array([(100.5, 80), (161, 83), (140, 120), (99, 119)])


@pytest.fixture
def slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slide whose file records a scanned part, as MIRAX and Ventana files do."""
    monkeypatch.setattr(openslide_reader, "_read_bounds", lambda properties: BOUNDS)
    pixels = slides.tissue(260, 210)
    return slides.write_slide(tmp_path / "s.tif", [pixels, slides.halve(pixels)])


def tile(slide: Path, annotation: Path, **changes) -> PatchStore:
    store = slide.with_name(f"{annotation.stem}.zarr")
    config = replace(CONFIG, **changes)
    summary = tile_slide(
        slide, store, slide_id="s", config=config, annotation_path=annotation, slide_label=1
    )
    opened = PatchStore.open(store)
    assert list(summary.notes) == opened.attributes["notes"]
    return opened


def test_one_lesion_is_labelled_the_same_in_both_frames(slide, tmp_path):
    of_slide = write_geojson(tmp_path / "whole.geojson", {"Tumor": TUMOUR})
    of_bounds = write_geojson(
        tmp_path / "cropped.geojson", {"Tumor": TUMOUR - np.array(BOUNDS[:2])}
    )

    whole = tile(slide, of_slide)
    cropped = tile(slide, of_bounds, annotation_origin="bounds")

    assert whole.label.sum() > 0
    for name in ("label", "tumour", "lesion_pairs", "coords"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cropped, name))
    assert whole.attributes["lesions"] == cropped.attributes["lesions"]
    tumours = [
        read_annotation_of_store(of_slide, whole).tumour,
        read_annotation_of_store(of_bounds, cropped).tumour,
    ]
    assert tumours[0].equals(tumours[1])
    assert whole.fingerprint != cropped.fingerprint
    assert (tile(slide, of_bounds).label != whole.label).any()  # the wrong frame is another label


@pytest.mark.parametrize(
    ("origin", "message"), [("level0", "set tile.annotation_origin=bounds"), ("bounds", "(37, 21)")]
)
def test_a_file_that_could_be_in_either_frame_is_noted(slide, tmp_path, origin, message):
    annotation = write_geojson(tmp_path / "a.geojson", {"Tumor": TUMOUR})
    notes = tile(slide, annotation, annotation_origin=origin).attributes["notes"]
    assert any("bounds" in note and message in note for note in notes)


def test_asap_counts_from_the_slides_corner_and_nothing_is_noted(slide, tmp_path):
    write_asap_xml(tmp_path / "a.xml", [("one", "Tumor", TUMOUR)], ["Tumor"])
    assert tile(slide, tmp_path / "a.xml").attributes["notes"] == []


def test_a_slide_without_bounds_begins_at_its_corner(tmp_path):
    annotation = write_geojson(tmp_path / "a.geojson", {"Tumor": TUMOUR})
    for bounds in (None, (0, 0, 10, 10)):
        found = read_annotation(annotation, origin="bounds", bounds=bounds)
        assert found.tumour.bounds == read_annotation(annotation).tumour.bounds


def test_an_outline_that_fits_only_the_other_frame_is_refused_with_the_remedy(slide, tmp_path):
    annotation = write_geojson(tmp_path / "a.geojson", {"Tumor": TUMOUR - np.array([200, 0])})
    with pytest.raises(AnnotationError, match=r"a\.geojson.*annotation_origin"):
        tile(slide, annotation)


def test_an_unknown_origin_is_refused(slide, tmp_path):
    annotation = write_geojson(tmp_path / "a.geojson", {"Tumor": TUMOUR})
    with pytest.raises(GridError, match="annotation_origin must be one of level0, bounds"):
        tile(slide, annotation, annotation_origin="crop")


class TestExclude:
    HOLE = np.array([(110, 90), (130, 90), (130, 110), (110, 110)], float)

    def test_a_class_is_cut_out_where_asked(self, tmp_path):
        path = write_geojson(tmp_path / "a.geojson", {"Tumor": TUMOUR, "Necrosis": self.HOLE})
        whole = read_annotation(path).tumour
        cut = read_annotation(path, exclude=["necrosis "]).tumour
        assert whole.area - cut.area == pytest.approx(400)

    def test_a_group_of_asap_is_cut_out_where_asked(self, tmp_path):
        polygons = [("one", "Tumor", TUMOUR), ("two", "Blood", self.HOLE)]
        write_asap_xml(tmp_path / "a.xml", polygons, ["Tumor", "Blood"])
        assert read_annotation(tmp_path / "a.xml").notes  # taken for tumour, and said
        found = read_annotation(tmp_path / "a.xml", exclude=["Blood"])
        assert not found.notes
        assert found.tumour.area == pytest.approx(
            read_annotation(tmp_path / "a.xml").tumour.area - 400
        )

    def test_it_reaches_the_labels_and_what_is_read_again(self, slide, tmp_path):
        path = write_geojson(tmp_path / "a.geojson", {"Tumor": TUMOUR, "Necrosis": self.HOLE})
        whole, cut = tile(slide, path), tile(slide, path, exclude=("Necrosis",))
        assert cut.tumour.sum() < whole.tumour.sum()
        again = read_annotation_of_store(path, cut).tumour
        assert again.equals(read_annotation(path, exclude=["Necrosis"]).tumour)


def test_a_region_without_class_beside_a_tumour_is_not_labelled_tumour(slide, tmp_path):
    """It made every patch positive, without a note."""
    whole = np.array([(0, 0), (260, 0), (260, 210), (0, 210)])
    annotation = write_geojson(tmp_path / "a.geojson", {"None": whole, "Tumor": TUMOUR})

    alone = tile(slide, write_geojson(tmp_path / "alone.geojson", {"Tumor": TUMOUR}))
    both = tile(slide, annotation)
    np.testing.assert_array_equal(both.label, alone.label)
    assert sum("without class taken as regions" in n for n in both.attributes["notes"]) == 1

    forced = tile(slide, annotation, unclassified="tumour")
    assert (forced.label == 1).all()
    assert read_annotation_of_store(annotation, forced).tumour.area == 260 * 210
    assert forced.fingerprint != both.fingerprint


def test_a_guess_that_contradicts_the_slides_label_names_the_setting(slide, tmp_path):
    outline = write_geojson(tmp_path / "a.geojson", {"": TUMOUR})
    with pytest.raises(AnnotationError, match=r"labelled 0 .*unclassified=region"):
        tile_slide(
            slide, tmp_path / "a.zarr", slide_id="s", config=CONFIG, annotation_path=outline,
            slide_label=0,
        )  # fmt: skip


def test_an_unknown_rule_for_annotations_without_class_is_refused(slide, tmp_path):
    annotation = write_geojson(tmp_path / "a.geojson", {"Tumor": TUMOUR})
    with pytest.raises(GridError, match="unclassified must be one of auto, tumour, region"):
        tile(slide, annotation, unclassified="ignore")


@pytest.mark.parametrize("far", [4e6, 9e7])
def test_a_polygon_far_larger_than_the_slide_is_bounded_by_it(slide, tmp_path, far):
    huge = np.array([(-far, -far), (far, -far), (far, far), (-far, far)])
    store = tile(slide, write_geojson(tmp_path / "a.geojson", {"Tumor": huge}))
    assert (store.label == 1).all()
    assert (store.tumour == 1).all()
    assert any("outside the 260 x 210 slide in part" in note for note in store.attributes["notes"])


def test_a_polygon_far_larger_than_the_slide_is_drawn_on_pictures(slide, tmp_path):
    far = 9e7
    huge = np.array([(-far, 100), (far, 100), (far, far), (-far, far)])
    drawn = write_geojson(tmp_path / "a.geojson", {"Tumor": huge})
    tile_slide(
        slide, tmp_path / "a.zarr", slide_id="s", config=CONFIG, annotation_path=drawn,
        qc_path=tmp_path / "a.png",
    )  # fmt: skip
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    row = round(100 * picture.width / 260)
    assert (pixels[row, 10:1000] == 0).all(axis=1).mean() > 0.9  # the outline, black


def test_a_mask_of_tissue_far_larger_than_the_slide_is_bounded_by_it(slide, tmp_path):
    far = 9e7
    huge = np.array([(-far, -far), (130, -far), (130, far), (-far, far)])
    (tmp_path / "masks").mkdir()
    write_geojson(tmp_path / "masks" / "s.geojson", {"Tissue": huge})
    tissue = TissueConfig(mpp=2.0, mask=tmp_path / "masks", min_fraction=0.5)
    config = replace(CONFIG, tissue=tissue)
    tile_slide(slide, tmp_path / "a.zarr", slide_id="s", config=config)
    coords = PatchStore.open(tmp_path / "a.zarr").coords
    assert len(coords) == 4 * 6
    assert coords[:, 0].max() < 130


def test_what_was_skipped_in_a_mask_of_tissue_is_noted(slide, tmp_path):
    (tmp_path / "masks").mkdir()
    rings = {"Tissue": np.array([(0, 0), (200, 0), (200, 200)]), "Fold*": np.array([(0, 0)] * 2)}
    path = write_geojson(tmp_path / "masks" / "s.geojson", rings)
    path.write_bytes(path.read_text().replace("Fold*", "Pli éF*").encode("cp1252"))
    config = replace(CONFIG, tissue=TissueConfig(mpp=2.0, mask=tmp_path / "masks"))
    summary = tile_slide(slide, tmp_path / "a.zarr", slide_id="s", config=config)
    notes = [note for note in summary.notes if note.startswith("tissue mask: ")]
    assert any("read as Windows-1252" in note for note in notes)
    assert any("not tissue by their class: Pli éF*" in note for note in notes)
