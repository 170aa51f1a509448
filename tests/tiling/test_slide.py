"""Opening slides, describing them, refusing what is none."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.helpers import slides
from tests.helpers.real_data import real_data
from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.errors import SlideError
from tiling.listing.samples import N_SAMPLES, SAMPLE_BYTES, fingerprint_file
from tiling.overview import read_overview, read_thumbnail
from tiling.readers.openslide_reader import OpenSlideReader
from tiling.readers.tiff_reader import TiffReader
from tiling.readers.tiled_tiff_reader import TiledTiffReader
from tiling.slide import describe_slide, note_slide, open_slide
from tiling.store import PatchStore

PIXELS = slides.noise(203, 131)


class TestOpening:
    def test_a_slide_of_a_known_layout_goes_through_the_fast_reader(self, tmp_path: Path):
        with open_slide(slides.write_svs(tmp_path / "a.svs", [PIXELS])) as slide:
            assert isinstance(slide, TiledTiffReader)
            assert slide.vendor == "aperio"
            assert slide.mpp == (0.5, 0.5)
            assert slide.objective_power == 20

    def test_a_striped_tiff_goes_through_the_tiff_reader(self, tmp_path: Path):
        with open_slide(slides.write_slide(tmp_path / "a.tif", [PIXELS], tile=None)) as slide:
            assert isinstance(slide, TiffReader)

    def test_an_ome_tiff_keeps_its_pyramid_and_resolution(self, tmp_path: Path):
        """OpenSlide takes it for a plain TIFF of one level without mpp."""
        path = slides.write_ome(tmp_path / "a.ome.tif", [PIXELS, slides.halve(PIXELS)], mpp=0.25)
        with open_slide(path) as slide:
            assert slide.level_sizes == ((203, 131), (101, 65))
            assert slide.mpp == pytest.approx((0.25, 0.25))

    def test_16_bit_rgb_that_openslide_converts_is_opened(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", [PIXELS.astype(np.uint16) * 257])
        with open_slide(path) as slide:
            assert isinstance(slide, OpenSlideReader)
            region = slide.read_region((0, 0), 0, slide.size)
        assert np.abs(region.astype(int) - PIXELS).max() <= 1


class TestRefusals:
    """Each names the file, the cause and the remedy."""

    def refusal(self, path: Path) -> str:
        with pytest.raises(SlideError) as caught:
            open_slide(path)
        assert str(caught.value).startswith(f"{path.name}: ")
        return str(caught.value)

    def test_missing(self, tmp_path: Path):
        assert "no such file" in self.refusal(tmp_path / "gone.svs")

    def test_folder(self, tmp_path: Path):
        assert "a folder, not a slide file" in self.refusal(tmp_path)

    def test_empty(self, tmp_path: Path):
        (tmp_path / "a.svs").touch()
        assert "empty (0 bytes); copy it again" in self.refusal(tmp_path / "a.svs")

    def test_garbage(self, tmp_path: Path):
        (tmp_path / "a.svs").write_bytes(np.random.default_rng(0).bytes(5000))
        assert "neither a format that OpenSlide knows nor a TIFF" in self.refusal(
            tmp_path / "a.svs"
        )

    def test_garbage_with_the_head_of_a_tiff(self, tmp_path: Path):
        (tmp_path / "a.svs").write_bytes(b"II*\0" + np.random.default_rng(0).bytes(5000))
        self.refusal(tmp_path / "a.svs")

    def test_16_bit_in_strips(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", [PIXELS.astype(np.uint16)], tile=None)
        assert "16 bits per sample" in self.refusal(path)

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
    @pytest.mark.parametrize("write", [slides.write_svs, slides.write_slide, slides.write_ome])
    def test_cut_off_never_gives_wrong_pixels(self, tmp_path: Path, share, write):
        path = write(tmp_path / "a.tif", [PIXELS, slides.halve(PIXELS)])
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        message, pixels = "", PIXELS
        try:
            with open_slide(path) as slide:
                pixels = slide.read_region((0, 0), 0, slide.size)
        except SlideError as error:
            message = str(error)
        assert message.startswith("a.tif: ") or not message
        np.testing.assert_array_equal(pixels, PIXELS)

    def test_a_cut_off_tiff_that_openslide_refuses_says_it_is_cut_off(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", [PIXELS])
        path.write_bytes(path.read_bytes()[:-1000])
        assert "cut off" in self.refusal(path)

    def test_tiles_of_terabytes_do_not_end_the_process(self, tmp_path: Path):
        """OpenSlide aborts when it cannot allocate a tile."""
        path = slides.write_svs(tmp_path / "a.svs", [PIXELS])
        with tifffile.TiffFile(path) as tif:
            offset = tif.pages[0].tags["TileWidth"].valueoffset
        data = bytearray(path.read_bytes())
        data[offset : offset + 4] = (2**31 - 1).to_bytes(4, "little")
        path.write_bytes(data)
        assert "if damaged, copy it again" in self.refusal(path)

    def test_the_shared_broken_slide(self):
        path = real_data("slides/broken.svs")
        assert "check that it is a slide" in self.refusal(path)


class TestDescription:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return slides.write_svs(tmp_path / "tumor_012.svs", [PIXELS, slides.halve(PIXELS, 2)])

    def test_says_what_is_known_and_nothing_private(self, path: Path):
        with open_slide(path) as slide:
            info = describe_slide(slide, path=path, slide_id="t12")
        assert info.size == (203, 131)
        assert info.mpp == (0.5, 0.5)
        assert info.level_sizes == ((203, 131), (50, 32))
        text = json.dumps(dataclasses.asdict(info))
        assert str(path.parent) not in text
        assert "secret" not in text
        assert "12/29/09" not in text

    def test_a_given_mpp_goes_before_the_files(self, path: Path):
        with open_slide(path) as slide:
            assert describe_slide(slide, path=path, slide_id="a", mpp=0.3).mpp == (0.3, 0.3)

    def test_missing_mpp_says_how_to_give_it(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "tumor_012.tif", [PIXELS], mpp=None)
        with open_slide(path) as slide, pytest.raises(SlideError) as caught:
            describe_slide(slide, path=path, slide_id="a")
        assert str(caught.value) == (
            "tumor_012.tif: no microns-per-pixel in the file (openslide.mpp-x); "
            "give it in the manifest's mpp column"
        )

    @pytest.mark.parametrize("mpp", [0.0, -0.25, math.nan, math.inf])
    def test_a_given_mpp_must_be_one(self, path: Path, mpp):
        with open_slide(path) as slide, pytest.raises(SlideError, match="manifest's mpp column"):
            describe_slide(slide, path=path, slide_id="a", mpp=mpp)

    @pytest.mark.parametrize("mpp", [0.0, -1.0, "nan", "rubbish"])
    def test_nonsense_in_the_file_counts_as_missing(self, tmp_path: Path, mpp):
        with open_slide(slides.write_svs(tmp_path / "a.svs", [PIXELS], mpp=mpp)) as slide:
            assert slide.mpp is None

    def test_x_and_y_are_kept_apart(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", [PIXELS], mpp=(0.25, 0.5))
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx((0.25, 0.5))


class TestResolutionNotes:
    """A resolution that is hardly the microscope's is used, with a note."""

    @staticmethod
    def notes_of(path: Path, mpp: float | None = None) -> tuple[str, ...]:
        with open_slide(path) as slide:
            return note_slide(slide, mpp=mpp)

    @pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiles", "strips"])
    @pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
    @pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200])
    def test_a_printers_resolution_is_named(self, tmp_path: Path, tile, unit, dpi):
        density = dpi if unit == "INCH" else round(dpi / 2.54, 1)
        options = {"resolution": (density, density), "resolutionunit": unit}
        path = slides.write_slide(tmp_path / "a.tif", [PIXELS], mpp=None, tile=tile, **options)
        [note] = self.notes_of(path)
        assert f"{dpi} dpi" in note
        assert ("is not used" in note) == (dpi <= 300)
        assert self.notes_of(path, mpp=0.5) == ()

    @pytest.mark.parametrize("write", [slides.write_slide, slides.write_svs, slides.write_ome])
    @pytest.mark.parametrize(("mpp", "is_noted"), [(0.04, True), (0.06, False), (2.0, False)])
    def test_one_finer_than_light_is_named(self, tmp_path: Path, write, mpp, is_noted):
        path = write(tmp_path / "a.tif", [PIXELS], mpp=mpp)
        notes = " ".join(self.notes_of(path))
        assert ("0.04 µm per pixel is finer" in notes) == is_noted

    @pytest.mark.parametrize(
        ("mpp", "is_noted"), [(0.35, False), (0.5, False), (0.55, False), (0.25, True), (1.0, True)]
    )
    def test_one_that_contradicts_the_objective_is_named(self, tmp_path: Path, mpp, is_noted):
        """The slide has AppMag = 20."""
        path = slides.write_svs(tmp_path / "a.svs", [PIXELS], mpp=mpp)
        assert bool(self.notes_of(path)) == is_noted
        assert bool(self.notes_of(slides.write_svs(path, [PIXELS], mpp=0.5), mpp=mpp)) == is_noted

    def test_the_store_keeps_the_notes(self, tmp_path: Path):
        pixels = slides.tissue(300, 260)
        path = slides.write_svs(tmp_path / "a.svs", [pixels], mpp=1.0)
        config = TileConfig(
            target_mpp=1.0, patch_px=32, tissue=TissueConfig(mpp=4.0, min_object_um2=100)
        )
        summary = tile_slide(path, tmp_path / "a.zarr", slide_id="a", config=config)
        assert "objective power 20" in str(summary)
        with PatchStore.open(tmp_path / "a.zarr") as store:
            assert "objective power 20" in store.attributes["notes"][0]


class TestFingerprint:
    def test_follows_the_bytes_not_the_name_or_the_date(self, tmp_path: Path):
        path = slides.write_svs(tmp_path / "a.svs", [PIXELS])
        shutil.copyfile(path, tmp_path / "b.svs")
        assert fingerprint_file(path) == fingerprint_file(tmp_path / "b.svs")

    @pytest.mark.parametrize("place", [0, 500_000, 4_999_999])
    def test_notices_a_change_at_the_ends(self, tmp_path: Path, place):
        data = bytearray(5_000_000)
        (tmp_path / "a").write_bytes(data)
        before = fingerprint_file(tmp_path / "a")
        data[place] = 1
        (tmp_path / "a").write_bytes(data)
        assert fingerprint_file(tmp_path / "a") != before

    @pytest.mark.parametrize("part", range(1, N_SAMPLES + 1))
    def test_notices_a_change_in_each_sample_between(self, tmp_path: Path, part):
        size, path = 40 * 2**20, tmp_path / "a"
        with path.open("wb") as file:
            file.truncate(size)
        before = fingerprint_file(path)
        with path.open("r+b") as file:
            file.seek(size * part // (N_SAMPLES + 1) + SAMPLE_BYTES - 1)
            file.write(b"1")
        assert fingerprint_file(path) != before

    def test_notices_another_length(self, tmp_path: Path):
        (tmp_path / "a").write_bytes(bytes(10))
        (tmp_path / "b").write_bytes(bytes(11))
        assert fingerprint_file(tmp_path / "a") != fingerprint_file(tmp_path / "b")

    def test_a_missing_file_is_an_error_of_the_slide(self, tmp_path: Path):
        with pytest.raises(SlideError, match="no such file"):
            fingerprint_file(tmp_path / "gone.svs")


class TestThumbnail:
    def test_is_the_mean_of_the_areas_under_its_pixels(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", [slides.noise(200, 120)])
        with open_slide(path) as slide:
            thumbnail, pixel_l0 = read_thumbnail(slide, mpp=(0.5, 0.5), target_mpp=2.0)
        means = slides.noise(200, 120).reshape(30, 4, 50, 4, 3).mean(axis=(1, 3))
        assert pixel_l0 == (4.0, 4.0)
        assert np.abs(thumbnail - means).max() <= 0.51

    def test_covers_an_odd_slide_from_edge_to_edge(self, tmp_path: Path):
        with open_slide(slides.write_slide(tmp_path / "a.tif", [PIXELS])) as slide:
            thumbnail, (x, y) = read_thumbnail(slide, mpp=(0.5, 0.25), target_mpp=3.0)
        height, width = thumbnail.shape[:2]
        assert (width, height) == (round(203 / 6), round(131 / 12))
        assert (width * x, height * y) == pytest.approx((203, 131))

    def test_of_a_coarse_slide_is_its_finest_level(self, tmp_path: Path):
        with open_slide(slides.write_slide(tmp_path / "a.tif", [PIXELS], mpp=20.0)) as slide:
            thumbnail, pixel_l0 = read_thumbnail(slide, mpp=(20.0, 20.0), target_mpp=8.0)
        assert pixel_l0 == (1.0, 1.0)
        np.testing.assert_array_equal(thumbnail, PIXELS)

    def test_in_blocks_and_threads_is_the_same(self, tmp_path: Path, monkeypatch):
        path = slides.write_slide(tmp_path / "a.tif", [PIXELS])
        with open_slide(path) as slide:
            whole = read_overview(slide, mpp=(0.5, 0.5), target_mpp=1.7)
            monkeypatch.setattr("tiling.overview.OVERVIEW_BLOCK_PX", 40)
            blocks = read_overview(slide, mpp=(0.5, 0.5), target_mpp=1.7, threads=3)
        np.testing.assert_array_equal(whole.rgb, blocks.rgb)

    def test_says_where_it_could_not_be_read(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", [slides.noise(640, 640)])
        slides.break_file_tile(path, 11)  # x 64 to 127, y 64 to 127
        with open_slide(path) as slide:
            overview = read_overview(slide, mpp=(0.5, 0.5), target_mpp=1.0)
        assert overview.unreadable[32:64, 32:64].all()
        assert not overview.unreadable[80:].any()
        assert (overview.rgb[overview.unreadable] == 255).all()
        assert overview.rgb[~overview.unreadable].mean() < 140

    def test_of_a_wholly_damaged_slide_is_not_tried_spot_by_spot(self, tmp_path: Path, monkeypatch):
        """It took minutes: every 16 px of the picture were read, and each failure reopened it."""
        path = slides.write_slide(tmp_path / "a.tif", [slides.noise(640, 640)])
        for index in range(100):
            slides.break_file_tile(path, index)
        n_reads = 0
        with open_slide(path) as slide:
            read = slide.read_region

            def counting(*region):
                nonlocal n_reads
                n_reads += 1
                return read(*region)

            monkeypatch.setattr(slide, "read_region", counting)
            overview = read_overview(slide, mpp=(0.5, 0.5), target_mpp=0.5)
        assert overview.unreadable.all()
        assert n_reads < 20
