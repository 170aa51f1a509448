"""One slide from file to finished store."""

import errno
import hashlib
import logging
import os
import shutil
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import slides
from tests.helpers.disks import small_disk
from tests.helpers.real_data import real_data
from tiling import build, patches, store_files
from tiling.annotation.formats.asap_xml import write_asap_xml
from tiling.build import tile_fingerprint, tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.errors import AnnotationError, GridError, SlideError, StoreError, TissueError
from tiling.qc import OUTLINE
from tiling.store import PatchStore

CONFIG = TileConfig(target_mpp=0.5, patch_px=32, tissue=TissueConfig(mpp=2.0, min_object_um2=100.0))
SIZE = (260, 210)
TUMOUR = [(100, 80), (140, 80), (140, 120), (100, 120)]  # on the tissue


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    pixels = slides.tissue(*SIZE)
    return slides.write_slide(tmp_path / "tumor_012.tif", [pixels, slides.halve(pixels)])


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    write_asap_xml(tmp_path / "tumor_012.xml", [("one", "Tumor", TUMOUR)], ["Tumor"])
    return tmp_path / "tumor_012.xml"


def tile(slide: Path, **options):
    store = slide.with_suffix(".zarr")
    options = {"slide_id": slide.stem, "config": CONFIG, **options}
    return tile_slide(slide, store, **options), PatchStore.open(store)


def digest_tree(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class TestStore:
    def test_keeps_the_tiles_with_tissue_row_by_row(self, slide: Path):
        summary, store = tile(slide)
        coords = store.coords
        grid = [(x, y) for y in range(0, 210 - 31, 32) for x in range(0, 260 - 31, 32)]

        assert summary.n_patches == len(store) < len(grid)
        assert [tuple(at) for at in coords.tolist()] == [
            at for at in grid if at in set(map(tuple, coords.tolist()))
        ]
        assert (store.tissue >= CONFIG.tissue.min_fraction).all()
        assert (summary.n_unlabelled, summary.n_ignored) == (len(store), 0)
        assert f", {len(store)} unlabelled) in" in str(summary)

    def test_ignored_patches_are_not_called_unlabelled(self, slide: Path, annotation: Path):
        rule = replace(CONFIG, label_rule="fraction", positive_fraction=1.0)
        summary, store = tile(slide, config=rule, annotation_path=annotation)

        assert summary.n_ignored == (store.label == -1).sum() > 0
        assert f", {summary.n_ignored} ignored) in" in str(summary)
        assert "unlabelled" not in str(summary)

    def test_labels_and_lesions(self, slide: Path, annotation: Path):
        summary, store = tile(slide, annotation_path=annotation, slide_label=1)
        inner = store.coords + 8  # 16 px wide
        hit = ((inner + 16 > [100, 80]) & (inner < [140, 120])).all(axis=1)

        np.testing.assert_array_equal(store.label, hit.astype(int))
        assert (summary.n_positive, summary.n_negative) == (hit.sum(), (~hit).sum())
        np.testing.assert_array_equal(np.sort(store.lesion_pairs[:, 0]), np.flatnonzero(hit))
        assert store.lesion_ids == ["1"]
        lesion = store.attributes["lesions"][0]
        assert lesion["area_um2"] == pytest.approx(40 * 40 * 0.25)
        assert lesion["centroid"] == pytest.approx([120, 100])
        assert lesion["bbox"] == [100, 80, 140, 120]

    def test_a_normal_slide_is_negative_everywhere(self, slide: Path):
        summary, store = tile(slide, slide_label=0)
        assert (store.label == 0).all()
        assert store.slide_label == 0
        assert summary.n_negative == len(store)

    def test_twice_gives_the_same_bytes(self, slide: Path, annotation: Path, tmp_path: Path):
        digests = []
        for number, threads in enumerate([1, 4]):
            folder = tmp_path / str(number)
            tile_slide(
                slide, folder / "a.zarr", slide_id="a", config=CONFIG, threads=threads,
                annotation_path=annotation, slide_label=1, qc_path=folder / "a.png",
            )  # fmt: skip
            digests.append(digest_tree(folder))
        assert digests[0] == digests[1]
        assert not any(".part" in name for name in digests[0])

    def test_the_digest_of_a_slide_is_kept_only_with_its_store(
        self, slide: Path, tmp_path: Path, monkeypatch
    ):
        monkeypatch.setattr("tiling.listing.content.RECENT_NS", 0)
        cache = tmp_path / "slide.digest"
        with pytest.raises(GridError):
            tile(slide, config=TileConfig(patch_px=4096, target_mpp=0.5), content_cache=cache)
        assert not cache.exists()
        _, store = tile(slide, content_cache=cache)
        assert store.info.fingerprint in cache.read_text()

    def test_an_annotation_that_changes_meanwhile_leaves_a_store_out_of_date(
        self, slide: Path, annotation: Path, monkeypatch
    ):
        known = {"slide_id": slide.stem, "config": CONFIG, "annotation_path": annotation}
        before = build.tile_fingerprint(slide, slide_label=1, mpp=None, **known)
        real = build.write_pixels

        def change(*args):
            annotation.write_bytes(annotation.read_bytes() + b"\n")
            return real(*args)

        monkeypatch.setattr(build, "write_pixels", change)
        _, store = tile(slide, annotation_path=annotation, slide_label=1)
        assert store.fingerprint == before
        assert build.tile_fingerprint(slide, slide_label=1, mpp=None, **known) != before

    def test_nothing_but_a_store_is_replaced(self, slide: Path, tmp_path: Path):
        """A folder of somebody's was once deleted with all that was in it."""
        mine, stores = tmp_path / "mine", tmp_path / "stores"
        mine.mkdir()
        (mine / "thesis.txt").write_text("years")
        tile_slide(slide, stores / "a.zarr", config=CONFIG)
        for path in (mine, stores, slide):  # its folder of stores, and the slide itself
            before = digest_tree(tmp_path)
            with pytest.raises(StoreError, match="not replaced"):
                tile_slide(slide, path, config=CONFIG)
            assert digest_tree(tmp_path) == before
        (stores / "a.zarr/zarr.json").unlink()  # damaged, but ours
        tile_slide(slide, stores / "a.zarr", config=CONFIG)
        assert (stores / "a.zarr/zarr.json").is_file()

    def test_an_old_store_is_replaced(self, slide: Path):
        tile(slide)
        _, store = tile(slide, config=replace(CONFIG, patch_px=16))
        assert store.geometry.patch_px == 16

    def test_a_given_mpp_changes_the_geometry(self, slide: Path):
        _, store = tile(slide, mpp=0.25)
        assert store.info.mpp == (0.25, 0.25)
        assert store.geometry.patch_l0 == 64

    def test_progress_counts_every_patch(self, slide: Path, monkeypatch):
        monkeypatch.setattr(store_files, "SHARD_BYTES", 5 * 3 * 32**2)
        seen = []
        summary, _ = tile(slide, threads=3, on_progress=lambda *at: seen.append(at))
        done = [n_done for n_done, _ in seen]
        assert done == sorted(set(done))
        assert seen[-1] == (summary.n_patches, summary.n_patches)
        assert {total for _, total in seen} == {summary.n_patches}

    def test_memory_holds_one_shard(self, slide: Path, monkeypatch):
        """However many patches a slide has, no more than a shard of them is in memory."""
        monkeypatch.setattr(store_files, "SHARD_BYTES", 16 * 3 * 32**2)

        def measure(stride_px: int) -> tuple[int, int]:
            config = replace(CONFIG, stride_px=stride_px)
            tracemalloc.start()
            try:
                summary, _ = tile(slide, config=config)
                return 3 * 32**2 * summary.n_patches, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        measure(16)  # what is imported and allocated once
        few, many = measure(8), measure(3)
        assert many[0] - few[0] > 8 * 2**20
        assert many[1] - few[1] < 4 * 2**20  # the file is hashed meanwhile, 1 MiB at a time

    def test_says_which_lesions_meet_no_patch(self, slide: Path, tmp_path: Path):
        corner = [(1, 1), (6, 1), (6, 6), (1, 6)]  # on glass
        polygons = [("one", "Tumor", TUMOUR), ("two", "Tumor", corner)]
        write_asap_xml(tmp_path / "a.xml", polygons, ["Tumor"])
        summary, store = tile(slide, annotation_path=tmp_path / "a.xml", slide_label=1)
        assert any("1 of 2 lesions meets no patch" in note for note in summary.notes)
        assert store.attributes["notes"] == list(summary.notes)

    @pytest.mark.parametrize("colour", [244, (240, 222, 232)], ids=["bare", "all tissue"])
    def test_min_fraction_0_keeps_every_tile(self, tmp_path: Path, colour):
        pixels = np.full((200, 150, 3), colour, np.uint8)
        path = slides.write_slide(tmp_path / "a.tif", [pixels])
        config = replace(CONFIG, tissue=replace(CONFIG.tissue, min_fraction=0.0))
        summary, store = tile(path, config=config)
        assert summary.n_patches == (200 // 32) * (150 // 32)
        assert store.tissue.max() == (0 if colour == 244 else 1)

    def test_a_grey_slide_is_cut(self, tmp_path: Path):
        """A single channel is documented as input; no tile of it was tissue."""
        pixels = np.full((256, 256), 242, np.uint8)
        pixels[:, 128:] = 165
        path = slides.write_slide(tmp_path / "a.tif", [pixels], photometric="minisblack")
        tissue = replace(CONFIG.tissue, min_fraction=0.5)
        summary, store = tile(path, config=replace(CONFIG, tissue=tissue))
        assert summary.n_patches == 32
        assert store.coords[:, 0].min() == 128

    @pytest.mark.parametrize("glass", [(244, 238, 205), (238, 220, 230)], ids=["warm", "pink"])
    def test_half_the_tiles_of_tinted_glass_are_tissue_and_the_border_is_noted(
        self, tmp_path: Path, glass
    ):
        pixels = np.full((256, 256, 3), glass, np.uint8)
        pixels[:, :128] = slides.noise(128, 256) // 8 + np.array([190, 100, 150], np.uint8)
        path = slides.write_slide(tmp_path / "a.tif", [pixels])
        tissue = replace(CONFIG.tissue, min_fraction=0.5)
        summary, store = tile(path, config=replace(CONFIG, tissue=tissue))
        assert summary.n_patches == 32
        assert store.coords[:, 0].max() < 128
        (note,) = summary.notes
        assert note.split(" % of the slide's border counts as tissue")[0] in ("50", "51")

    def test_tissue_away_from_the_border_gets_no_note(self, slide: Path):
        summary, _ = tile(slide)
        assert summary.notes == ()


class TestRefusals:
    """Each names the file, the cause and the remedy, and leaves nothing behind."""

    def refusal(self, kind, slide: Path, **options) -> str:
        with pytest.raises(kind) as caught:
            tile(slide, **options)
        left = [f.name for f in slide.parent.iterdir() if "zarr" in f.name or "part" in f.name]
        assert left == []
        return str(caught.value)

    def test_no_tissue(self, tmp_path: Path):
        glass = slides.write_slide(tmp_path / "a.tif", [np.full((200, 200, 3), 244, np.uint8)])
        message = self.refusal(TissueError, glass, qc_path=tmp_path / "a.png")
        assert message.startswith("a.tif: no tissue: 0 %")
        assert "min_fraction=0.1" in message
        assert (tmp_path / "a.png").exists()

    @pytest.mark.parametrize(
        ("spot", "colour", "changes", "remedy"),
        [
            (0, 244, {}, ""),
            (50, (200, 120, 170), {"min_object_um2": 1e6}, "set tissue.min_object_um2=0, or "),
            (80, (244, 236, 242), {}, "set tissue.min_saturation=0.02, or "),
            (80, (200, 120, 170), {"min_fraction": 1.0}, "set tissue.min_fraction=0."),
        ],
        ids=["bare", "small", "pale", "part of a tile"],
    )
    def test_no_tissue_names_what_would_help_and_nothing_else(
        self, tmp_path: Path, spot, colour, changes, remedy
    ):
        """It named settings that could not help, and never a mask."""
        pixels = np.full((200, 200, 3), 244, np.uint8)
        pixels[40 : 40 + spot, 50 : 50 + spot] = colour
        glass = slides.write_slide(tmp_path / "a.tif", [pixels])
        config = replace(
            CONFIG, patch_px=200, tissue=replace(CONFIG.tissue, mpp=1.0, min_fraction=0.05)
        )
        config = replace(config, tissue=replace(config.tissue, **changes))
        message = self.refusal(TissueError, glass, config=config)
        end = "give a mask of your own (tissue.mask), or set tissue.min_fraction=0 to keep"
        assert f"QC picture, then {remedy}" in message
        assert end in message
        if remedy:
            key, value = remedy.removeprefix("set tissue.").split(",")[0].split("=")
            if key == "min_fraction":
                value = message.split("set tissue.min_fraction=")[1].split(",")[0]
            tissue = replace(config.tissue, **{key: float(value)})
            summary, _ = tile(glass, config=replace(config, tissue=tissue))
            assert summary.n_patches == 1
        else:
            assert f"then {end}" in message

    def test_smaller_than_one_tile(self, slide: Path):
        message = self.refusal(GridError, slide, config=replace(CONFIG, patch_px=512))
        assert message.startswith("tumor_012.tif: the slide has 260 x 210")
        assert "smaller tile.patch_px" in message

    def test_coarser_than_wanted(self, slide: Path):
        message = self.refusal(GridError, slide, config=replace(CONFIG, target_mpp=0.25))
        assert message.startswith("tumor_012.tif: ")

    def test_no_resolution(self, tmp_path: Path):
        bare = slides.write_slide(tmp_path / "a.tif", [slides.tissue(*SIZE)], mpp=None)
        assert "manifest's mpp column" in self.refusal(SlideError, bare)

    def test_annotation_of_another_slide(self, slide: Path, tmp_path: Path):
        far = [(x + 9000, y) for x, y in TUMOUR]
        write_asap_xml(tmp_path / "a.xml", [("one", "Tumor", far)], ["Tumor"])
        message = self.refusal(AnnotationError, slide, annotation_path=tmp_path / "a.xml")
        assert "a.xml: " in message
        assert "outside the slide" in message

    def test_label_against_annotation(self, slide: Path, annotation: Path):
        message = self.refusal(AnnotationError, slide, annotation_path=annotation, slide_label=0)
        assert message.startswith("tumor_012.tif: tumor_012.xml: the slide is labelled 0")

    def test_missing_annotation(self, slide: Path, tmp_path: Path):
        message = self.refusal(AnnotationError, slide, annotation_path=tmp_path / "gone.xml")
        assert "gone.xml" in message

    def test_full_disk(self, slide: Path, tmp_path: Path):
        (tmp_path / "disk").mkdir()
        with small_disk(tmp_path / "disk", kib=100) as disk:  # the patches take 192 KiB
            small = Path(shutil.copy(slide, disk.parent / "small.tif"))
            with pytest.raises(StoreError) as caught:
                tile_slide(small, disk / "a.zarr", slide_id="a", config=CONFIG)
            assert str(caught.value).startswith("a.zarr: no space left on device")
            assert list(disk.iterdir()) == []

    def test_exceeded_quota(self, slide: Path, monkeypatch):
        def no_space(*_args, **_options):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(build, "write_table", no_space)
        message = self.refusal(StoreError, slide)
        assert message.startswith("tumor_012.zarr: no space left on device")

    def test_interrupt_leaves_nothing_and_keeps_what_was(self, slide: Path, monkeypatch):
        tile(slide)
        before = digest_tree(slide.with_suffix(".zarr"))

        def interrupt(done: int, _total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tile(slide, config=replace(CONFIG, patch_px=16), threads=2, on_progress=interrupt)

        assert digest_tree(slide.with_suffix(".zarr")) == before
        assert not list(slide.parent.glob(".*.part"))
        assert not [t for t in threading.enumerate() if t.name.startswith("patches")]


class TestUnreadable:
    def test_patches_there_are_flagged_and_white(self, slide: Path, caplog):
        slides.break_file_tile(slide, 7)  # x 128 to 191, y 64 to 127 (5 across)
        with caplog.at_level(logging.CRITICAL):
            summary, store = tile(slide)
        inside = ((store.coords + 32 > [128, 64]) & (store.coords < [192, 128])).all(axis=1)

        assert inside.sum() == 4
        np.testing.assert_array_equal(store.unreadable, inside)
        assert (store.read(np.flatnonzero(inside)) == 255).all()
        assert summary.n_unreadable == 4
        assert any("4 of " in note and "cannot be decoded" in note for note in summary.notes)

    def test_tissue_that_the_thumbnail_cannot_show_is_tried_and_counted(self, tmp_path: Path):
        """Else a bad spot in the middle of tissue would silently count as glass."""
        path = slides.write_slide(tmp_path / "a.tif", [slides.tissue(*SIZE)])
        for index in (6, 7, 8):
            slides.break_file_tile(path, index)
        summary, store = tile(path)
        inside = ((store.coords + 32 > [64, 64]) & (store.coords < [256, 128])).all(axis=1)
        assert summary.n_unreadable == inside.sum() == 12

    def test_few_are_logged_one_by_one(self, tmp_path: Path, caplog):
        """A damaged slide of a million patches would flood the screen; the sum is reported."""
        path = slides.write_slide(tmp_path / "a.tif", [slides.tissue(*SIZE)])
        for index in (6, 7, 8):
            slides.break_file_tile(path, index)
        summary, _ = tile(path)
        given = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(given) == 3 < summary.n_unreadable
        assert any("of the slide's overview cannot be decoded" in note for note in summary.notes)

    def test_too_many_fail_the_slide(self, slide: Path):
        for index in range(5, 15):
            slides.break_file_tile(slide, index)
        with pytest.raises(SlideError) as caught:
            tile(slide, config=replace(CONFIG, max_unreadable=0.1))
        assert str(caught.value).startswith("tumor_012.tif: ")
        assert "max_unreadable=0.1" in str(caught.value)
        assert not slide.with_suffix(".zarr").exists()

    def test_a_cut_off_striped_tiff_fails_only_where_it_is_cut(self, tmp_path: Path):
        path = slides.write_slide(
            tmp_path / "a.tif", [slides.tissue(*SIZE)], tile=None, compression=None, rowsperstrip=8
        )
        path.write_bytes(path.read_bytes()[: -60 * 260 * 3])  # the last 60 rows
        summary, store = tile(path)
        np.testing.assert_array_equal(store.unreadable, store.coords[:, 1] + 32 > 150)
        assert 0 < summary.n_unreadable < summary.n_patches / 2


class TestFingerprint:
    def fingerprint(self, slide: Path, **changes) -> str:
        settings = {"slide_id": "a", "config": CONFIG, "annotation_path": None, "slide_label": None}
        return tile_fingerprint(slide, **{**settings, "mpp": None, **changes})

    def test_is_the_stores(self, slide: Path):
        _, store = tile(slide, slide_id="a")
        assert store.fingerprint == self.fingerprint(slide)

    def test_follows_every_input(self, slide: Path, annotation: Path):
        before = self.fingerprint(slide)
        changed = [
            self.fingerprint(slide, slide_id="b"),
            self.fingerprint(slide, config=replace(CONFIG, stride_px=16)),
            self.fingerprint(slide, config=replace(CONFIG, tissue=TissueConfig(mpp=4.0))),
            self.fingerprint(slide, annotation_path=annotation),
            self.fingerprint(slide, slide_label=0),
            self.fingerprint(slide, mpp=0.3),
        ]
        annotation.write_text(annotation.read_text() + "\n")
        changed.append(self.fingerprint(slide, annotation_path=annotation))
        slide.write_bytes(slide.read_bytes() + b"\0")
        changed.append(self.fingerprint(slide))
        assert len({before, *changed}) == 1 + len(changed)

    def test_does_not_follow_where_the_files_lie(self, slide: Path, tmp_path: Path):
        before = self.fingerprint(slide)
        (tmp_path / "elsewhere").mkdir()
        assert self.fingerprint(slide.rename(tmp_path / "elsewhere/tumor_012.tif")) == before


class TestPicture:
    def test_shows_tiles_where_they_are_in_the_colour_of_their_label(
        self, slide: Path, annotation: Path, tmp_path: Path
    ):
        _, store = tile(
            slide, annotation_path=annotation, slide_label=1, qc_path=tmp_path / "a.png"
        )
        picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        zoom = 1200 // 260  # from the slide's own pixels, by whole steps
        assert picture.shape[1] == 260 * zoom
        for (x, y), label in zip(store.coords.tolist(), store.label.tolist(), strict=True):
            r, _, b = picture[y * zoom, (x + 16) * zoom]  # on the upper edge of the tile
            if picture[y * zoom, (x + 16) * zoom].tolist() != list(OUTLINE):
                assert (r > b + 100) if label == 1 else (b > r + 30)

    @pytest.mark.parametrize(
        "name", ["CMU-1-Small-Region.svs", "camelyon-overview-jpeg.dcm", "nuclei-dapi.ndpi"]
    )
    def test_real_slides_are_tiled(self, tmp_path: Path, name):
        path = real_data(f"slides/{name}")
        target = {".svs": 1.0, ".dcm": 29.0, ".ndpi": 1.0}[path.suffix]
        config = TileConfig(target_mpp=target, patch_px=64)
        summary = tile_slide(
            path, tmp_path / "a.zarr", slide_id="a", config=config, qc_path=tmp_path / "a.png"
        )
        store = PatchStore.open(tmp_path / "a.zarr")
        assert summary.n_patches > 40
        assert summary.n_unreadable == 0
        assert store.read([0, len(store) - 1]).std() > 1

    def test_a_real_slide_too_small_for_tissue_is_refused_with_a_sentence(self, tmp_path: Path):
        path = real_data("slides/tiny-sm.dcm")
        with pytest.raises(TissueError, match=r"tiny-sm\.dcm: no tissue"):
            tile_slide(path, tmp_path / "a.zarr", slide_id="a", config=replace(CONFIG, patch_px=16))


def test_only_an_error_of_the_slide_makes_a_patch_unreadable(slide: Path, monkeypatch):
    """A bug of ours is not."""

    def broken(*_args, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr(patches, "nearest_finer_level", broken)
    with pytest.raises(ZeroDivisionError):
        tile(slide)
