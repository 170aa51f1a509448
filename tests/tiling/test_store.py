"""The patch store: what was written is what is read, and nothing else passes for a store."""

import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import slides
from tiling import store_files
from tiling.build import tile_slide
from tiling.contracts import SCHEMA, PatchOrigin, TileConfig, TissueConfig
from tiling.errors import StoreError
from tiling.shards import RawShards, ShardWriter
from tiling.slide import open_slide
from tiling.store import PatchStore
from tiling.store_files import digest_table_files, find_damaged_pixels, stored_fingerprint

CONFIG = TileConfig(
    target_mpp=0.5, patch_px=32, stride_px=16, tissue=TissueConfig(mpp=2.0, min_object_um2=100.0)
)


def make_store(folder: Path, config: TileConfig = CONFIG) -> Path:
    slide = slides.write_slide(folder / "tumor_012.tif", [slides.tissue(260, 210)])
    tile_slide(slide, folder / "tumor_012.zarr", slide_id="tumor_012", config=config)
    return folder / "tumor_012.zarr"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_files, "SHARD_BYTES", 7 * 3 * 32**2)  # several shards, the last short
        return make_store(tmp_path_factory.mktemp("store"))


def make_old(store: Path) -> Path:
    """Turn a store into one of the versions that had no checksums."""
    group = zarr.open_group(store, mode="a")
    pixels, shards = group["patches"][...], group["patches"].shards
    del group["patches"]
    group.create_array(
        "patches",
        shape=pixels.shape,
        dtype=pixels.dtype,
        chunks=(1, *pixels.shape[1:]),
        shards=shards,
        compressors=None,
        dimension_names=("patch", "y", "x", "channel"),
        config={"write_empty_chunks": True},
    )[...] = pixels
    metadata = json.loads((store / "zarr.json").read_text())
    del metadata["attributes"]["sha256"]
    (store / "zarr.json").write_text(json.dumps(metadata, indent=2))
    return store


def read_pixels(index: int, path: Path):
    with PatchStore.open(path) as store:
        return store.read([index])


class TestReading:
    def test_patches_are_the_slides_pixels_at_their_coords(self, path: Path):
        pixels = slides.tissue(260, 210)
        with PatchStore.open(path) as store:
            patches = store.read(np.arange(len(store)))
            assert len(store) > 50
            for (x, y), patch in zip(store.coords, patches, strict=True):
                np.testing.assert_array_equal(patch, pixels[y : y + 32, x : x + 32])

    def test_a_patch_is_located_on_its_slide(self, path: Path):
        with PatchStore.open(path) as store:
            for row, (x, y) in enumerate(store.coords.tolist()):
                assert store.locate(row) == PatchOrigin("tumor_012", row, (x, y), (1.0, 1.0))
            with pytest.raises(StoreError, match=r"tumor_012\.zarr: "):
                store.locate(len(store))

    def test_plain_zarr_reads_the_same(self, path: Path):
        array = zarr.open_group(path)["patches"]
        with PatchStore.open(path) as store:
            np.testing.assert_array_equal(store.read(range(len(store))), array[:])
            np.testing.assert_array_equal(store.read([5])[0], array[5])

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_order_and_twice(self, path: Path, data):
        with PatchStore.open(path) as store:
            rows = data.draw(st.lists(st.integers(0, len(store) - 1), max_size=20))
            expected = zarr.open_group(path)["patches"][:][rows]
            np.testing.assert_array_equal(store.read(rows), expected)

    @pytest.mark.parametrize("rows", [[-1], [10_000], [0.5], [[1, 2]]], ids=str)
    def test_an_index_that_is_none_is_refused(self, path: Path, rows):
        with PatchStore.open(path) as store, pytest.raises(StoreError, match=r"tumor_012\.zarr: "):
            store.read(rows)

    def test_threads_share_it(self, path: Path):
        with PatchStore.open(path) as store, ThreadPoolExecutor(8) as pool:
            expected = store.read(range(len(store)))
            found = list(pool.map(lambda row: store.read([row])[0], range(len(store))))
        np.testing.assert_array_equal(found, expected)

    def test_a_pickled_store_reads_in_another_process(self, path: Path):
        with PatchStore.open(path) as store:
            expected = store.read([3, 1])
            copy = pickle.loads(pickle.dumps(store))
            np.testing.assert_array_equal(copy.read([3, 1]), expected)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                np.testing.assert_array_equal(pool.apply(store.read, ([3, 1],)), expected)

    def test_a_recompressed_copy_is_read_by_zarr(self, path: Path, tmp_path: Path):
        copy = tmp_path / "copy.zarr"
        source, target = zarr.open_group(path, mode="r"), zarr.create_group(copy)
        for name, array in source.arrays():
            target.create_array(name, data=array[...])  # zarr's own default: zstd, no shards
        target.attrs.put(dict(source.attrs))
        assert RawShards.open(copy / "patches") is None
        with PatchStore.open(path) as one, PatchStore.open(copy) as other:
            np.testing.assert_array_equal(one.read([4, 0, 4]), other.read([4, 0, 4]))

    def test_a_black_patch_is_a_patch(self, tmp_path: Path):
        """Zarr leaves out chunks that are all zero by default."""
        store_files.create_patches(tmp_path / "a.zarr", n_patches=3, patch_px=8)
        writer = ShardWriter(
            tmp_path / "a.zarr/patches", n_patches=3, patch_bytes=3 * 8**2, shard_length=3
        )
        for row, value in enumerate((0, 7, 0)):
            writer.write(row, np.full((8, 8, 3), value, np.uint8))
        writer.finish()
        raw = RawShards.open(tmp_path / "a.zarr/patches")
        assert raw is not None
        out = np.full((3, 8, 8, 3), 99, np.uint8)
        raw.read_into(np.array([2, 1, 0]), out)
        assert out.mean(axis=(1, 2, 3)).tolist() == [0, 7, 0]


class TestContents:
    def test_arrays_are_the_contracts(self, path: Path):
        group = zarr.open_group(path, mode="r")
        n = group["patches"].shape[0]
        expected = {
            "patches": ("uint8", (n, 32, 32, 3)),
            "coords": ("int64", (n, 2)),
            "tissue": ("float32", (n,)),
            "label": ("int8", (n,)),
            "tumour": ("float32", (n,)),
            "unreadable": ("bool", (n,)),
            "lesion_pairs": ("int64", (0, 2)),
        }
        assert {name: (str(a.dtype), a.shape) for name, a in group.arrays()} == expected

    def test_attributes_contain_every_setting_and_nothing_private(self, path: Path):
        attributes = dict(zarr.open_group(path, mode="r").attrs)
        assert attributes["schema"] == SCHEMA
        assert attributes["finished"] is True
        assert list(attributes)[-1] == "finished"
        assert attributes["slide"]["file_name"] == "tumor_012.tif"
        assert attributes["slide"]["mpp"] == [0.5, 0.5]
        tiling = attributes["tiling"]
        assert {"patch_px", "patch_l0", "stride_l0", "target_mpp", "inner_px"} <= set(tiling)
        assert tiling["stride_px"] == 16
        assert tiling["inner_px"] == 16
        assert tiling["tissue"]["mpp"] == 2.0
        assert str(path.parent) not in json.dumps(attributes)

    def test_slide_and_geometry_come_back_as_they_went_in(self, path: Path):
        with PatchStore.open(path) as store, open_slide(path.with_suffix(".tif")) as slide:
            assert store.info.size == slide.size
            assert store.info.level_downsamples == slide.level_downsamples
            assert store.geometry.scale == (1.0, 1.0)
            assert store.geometry.stride_l0 == 16
            assert store.slide_label is None
            assert store.lesion_ids == []
            assert store.fingerprint == stored_fingerprint(path)


class TestCoordsOnly:
    @pytest.fixture
    def coords_path(self, tmp_path: Path) -> Path:
        return make_store(tmp_path, replace(CONFIG, store="coords"))

    def test_reads_from_the_slide_what_the_other_kind_keeps(self, coords_path: Path, path: Path):
        slide = coords_path.with_suffix(".tif")
        assert "patches" not in zarr.open_group(coords_path, mode="r")
        with PatchStore.open(path) as kept, PatchStore.open(coords_path, slide_path=slide) as read:
            np.testing.assert_array_equal(kept.coords, read.coords)
            np.testing.assert_array_equal(kept.read([2, 0, 2]), read.read([2, 0, 2]))
            with pickle.loads(pickle.dumps(read)) as copy:
                np.testing.assert_array_equal(copy.read([1]), kept.read([1]))

    def test_needs_the_slide(self, coords_path: Path):
        with PatchStore.open(coords_path) as store, pytest.raises(StoreError, match="slide_path"):
            store.read([0])

    def test_notices_another_slide(self, coords_path: Path, tmp_path: Path):
        other = slides.write_slide(tmp_path / "b.tif", [slides.tissue(260, 210, seed=5)])
        store = PatchStore.open(coords_path, slide_path=other)
        with pytest.raises(StoreError, match=r"b\.tif is not the slide"):
            store.read([0])

    def test_flags_what_cannot_be_decoded(self, tmp_path: Path):
        slide = slides.write_slide(tmp_path / "a.tif", [slides.tissue(260, 210)])
        slides.break_file_tile(slide, 7)  # x 128 to 191, y 64 to 127 (5 across)
        config = replace(CONFIG, store="coords", stride_px=32)
        tile_slide(slide, tmp_path / "a.zarr", slide_id="a", config=config)
        with PatchStore.open(tmp_path / "a.zarr", slide_path=slide) as store:
            patches, unreadable = store.read_flagged(range(len(store)))
            inside = ((store.coords + 32 > [128, 64]) & (store.coords < [192, 128])).all(axis=1)
            np.testing.assert_array_equal(unreadable, inside)
            np.testing.assert_array_equal(store.unreadable, inside)
            assert (patches[inside] == 255).all()


class TestFindDamage:
    def test_all_shards_or_those_changed_since(self, path: Path, tmp_path: Path):
        copy = Path(shutil.copytree(path, tmp_path / "tumor_012.zarr"))
        now = max(file.stat().st_mtime_ns for file in copy.rglob("*"))
        shard = copy / "patches/c/1/0/0/0"
        content = bytearray(shard.read_bytes())
        content[100] ^= 1
        shard.write_bytes(content)
        os.utime(shard, ns=(now, now))
        message = "tumor_012.zarr: damaged: shard 1: the checksum of patch 7 does not match"
        assert (find_damaged_pixels(copy) or "").startswith(message)
        assert find_damaged_pixels(copy, changed_since=now) is None
        os.utime(shard, ns=(now + 1, now + 1))
        assert (find_damaged_pixels(copy, changed_since=now) or "").startswith(message)
        assert find_damaged_pixels(path) is None

    def test_the_digest_of_the_other_files_leaves_the_pixels_out(self, path: Path, tmp_path: Path):
        copy = Path(shutil.copytree(path, tmp_path / "tumor_012.zarr"))
        before = digest_table_files(copy)
        (copy / "patches/c/1/0/0/0").write_bytes(b"")
        assert digest_table_files(copy) == before == digest_table_files(path)
        (copy / "patches/zarr.json").write_bytes(b"")
        assert digest_table_files(copy) != before


class TestEarlierVersions:
    def test_a_store_without_checksums_is_read(self, path: Path, tmp_path: Path):
        copy = make_old(Path(shutil.copytree(path, tmp_path / "tumor_012.zarr")))
        with PatchStore.open(copy) as old, PatchStore.open(path) as new:
            np.testing.assert_array_equal(old.read(range(len(old))), new.read(range(len(new))))
            np.testing.assert_array_equal(old.coords, new.coords)
        assert find_damaged_pixels(copy) is None


class TestRefusals:
    """Each names the store, the cause and the remedy."""

    @pytest.fixture
    def copy(self, path: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(path, tmp_path / "tumor_012.zarr"))

    def refusal(self, path: Path) -> str:
        with pytest.raises(StoreError) as caught:
            PatchStore.open(path).read([0])
        assert str(caught.value).startswith(f"{path.name}: ")
        assert stored_fingerprint(path) is None or "damaged" in str(caught.value)
        return str(caught.value)

    def edit(self, path: Path, **changes):
        metadata = json.loads((path / "zarr.json").read_text())
        for key, value in changes.items():
            metadata["attributes"][key] = value
            if value is None:
                del metadata["attributes"][key]
        (path / "zarr.json").write_text(json.dumps(metadata))

    def test_missing(self, tmp_path: Path):
        assert "there is no patch store" in self.refusal(tmp_path / "gone.zarr")

    def test_unfinished(self, copy: Path):
        self.edit(copy, finished=None)
        assert "its build was interrupted (no finished mark); delete it" in self.refusal(copy)

    def test_killed_before_its_attributes(self, tmp_path: Path):
        store_files.create_patches(tmp_path / "a.zarr", n_patches=3, patch_px=8)
        assert "its build was interrupted" in self.refusal(tmp_path / "a.zarr")

    def test_a_folder_that_is_no_zarr(self, tmp_path: Path):
        assert "not a patch store" in self.refusal(tmp_path)

    def test_a_zarr_of_somebody_else(self, tmp_path: Path):
        zarr.create_group(tmp_path / "a.zarr", attributes={"multiscales": []})
        assert "not a patch store" in self.refusal(tmp_path / "a.zarr")

    def test_another_schema(self, copy: Path):
        self.edit(copy, schema="wsi-pipeline/patch-store/99")
        assert "'wsi-pipeline/patch-store/99'" in self.refusal(copy)

    def test_broken_metadata(self, copy: Path):
        (copy / "zarr.json").write_text('{"attributes": {"schema"')
        assert "damaged" in self.refusal(copy)

    @pytest.mark.parametrize("name", ["coords", "label", "unreadable", "patches"])
    def test_a_missing_array(self, copy: Path, name):
        shutil.rmtree(copy / name)
        assert "damaged" in self.refusal(copy)

    def test_arrays_of_different_lengths(self, copy: Path):
        array = zarr.open_group(copy, mode="a")["label"]
        array.resize((array.shape[0] - 1,))
        assert "label has shape" in self.refusal(copy)

    def test_a_missing_shard_is_not_black(self, copy: Path):
        (copy / "patches/c/0/0/0/0").unlink()
        assert "shard 0: its file is missing" in self.refusal(copy)

    @pytest.mark.parametrize("n_bytes", [0, 10, 3 * 32**2, 5 * 3 * 32**2 + 100])
    def test_a_cut_off_shard_is_damage(self, copy: Path, n_bytes):
        shard = copy / "patches/c/0/0/0/0"
        shard.write_bytes(shard.read_bytes()[:n_bytes])
        assert "shard 0" in self.refusal(copy)

    @pytest.mark.parametrize("name", ["patches", "coords", "tissue", "label"])
    def test_a_flipped_byte_in_any_array_is_damage(self, copy: Path, name):
        [*_, file] = sorted(p for p in (copy / name / "c").rglob("*") if p.is_file())
        content = bytearray(file.read_bytes())
        content[min(500, len(content) // 3)] ^= 4
        file.write_bytes(content)
        with (
            pytest.raises(StoreError, match=r"damaged.*run tile again") as caught,
            PatchStore.open(copy) as store,
        ):
            store.read(np.arange(len(store)))
        assert caught.value.damaged == copy

    @pytest.mark.parametrize(
        ("old", "new"),
        [('"target_mpp": 0.5', '"target_mpp": 0.6'), ('"vendor": "gen', '"vendor": "Gen')],
    )
    def test_an_edited_attribute_is_damage(self, copy: Path, old, new):
        """A flipped digit in the resolution would have been used."""
        text = (copy / "zarr.json").read_text()
        assert old in text
        (copy / "zarr.json").write_text(text.replace(old, new))
        assert "its attributes or arrays are not those that were written" in self.refusal(copy)

    def test_an_array_whose_values_were_edited_is_damage(self, copy: Path):
        labels = zarr.open_group(copy, mode="a")["label"]
        labels[0] = 1 - labels[0]
        assert "its attributes or arrays are not those that were written" in self.refusal(copy)

    def test_a_table_without_its_chunk_is_not_zeros(self, copy: Path):
        (copy / "coords/c/0/0").unlink()
        assert "damaged" in self.refusal(copy)

    def test_an_attribute_that_is_no_mapping_is_damage(self, copy: Path):
        (copy / "zarr.json").write_text('{"attributes": [1, 2]}')
        assert "damaged: its zarr.json cannot be read" in self.refusal(copy)

    def test_nesting_without_end_is_damage(self, copy: Path):
        (copy / "zarr.json").write_text('{"attributes": ' + "[" * 100_000)
        assert "damaged: its zarr.json cannot be read" in self.refusal(copy)

    def test_missing_attributes(self, copy: Path):
        self.edit(copy, tiling=None)
        assert "damaged" in self.refusal(copy)
