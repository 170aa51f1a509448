"""The public names of `tiling`: paths as text, items and slices of a store, datasets of torch."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Subset

import tiling
from tests.helpers.slides import tissue, write_slide
from tiling.dataset import PatchDataset
from tiling.errors import PatchIndexError, StoreError
from wsi_pipeline.cohort.data import read_batch, to_unit_range

CONFIG = tiling.TileConfig(
    target_mpp=0.5, patch_px=32, tissue=tiling.TissueConfig(mpp=2.0, min_object_um2=100.0)
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    return write_slide(folder / "case_1.tif", [tissue(200, 170)])


@pytest.fixture(scope="module")
def store(slide) -> tiling.PatchStore:
    path = slide.with_suffix(".zarr")
    tiling.tile_slide(slide, path, config=CONFIG, slide_label=0)
    return tiling.PatchStore.open(path)


def test_paths_may_be_text(slide, tmp_path):
    assert tiling.TileConfig(coords="a/b").coords == Path("a/b")
    assert tiling.TissueConfig(mask="a/b").mask == Path("a/b")
    with tiling.open_slide(str(slide)) as opened:
        assert opened.size == (200, 170)
    path, picture = str(tmp_path / "a.zarr"), str(tmp_path / "a.png")
    summary = tiling.tile_slide(
        str(slide), path, config=CONFIG, qc_path=picture, content_cache=str(tmp_path / "a.json")
    )
    found = tiling.PatchStore.open(path)

    assert len(found) == summary.n_patches > 4
    assert found.path == Path(path)
    assert Path(picture).is_file()


def test_paths_of_annotations_and_slides_behind_coordinates_may_be_text(slide, tmp_path):
    ring = [[0, 0], [200, 0], [200, 170], [0, 170], [0, 0]]
    drawn = tmp_path / "a.geojson"
    drawn.write_text(
        '{"type": "Feature", "properties": {"classification": {"name": "Tumor"}}, '
        f'"geometry": {{"type": "Polygon", "coordinates": [{ring}]}}}}'
    )
    config = tiling.TileConfig(target_mpp=0.5, patch_px=32, store="coords", tissue=CONFIG.tissue)
    tiling.tile_slide(str(slide), str(tmp_path / "a"), config=config, annotation_path=str(drawn))
    found = tiling.PatchStore.open(
        str(tmp_path / "a"), slide_path=str(slide), content_cache=str(tmp_path / "a.json")
    )

    assert found.label.tolist() == [1] * len(found)
    with tiling.open_slide(slide) as opened:
        x, y = found.coords[1].tolist()
        assert np.array_equal(found[1], opened.read_region((x, y), 0, (32, 32)))
    found.close()


@pytest.mark.parametrize(
    ("name", "slide_id"), [("case.1.tif", "case.1"), ("1.2.840.10008.1", "1.2.840.10008.1")]
)
def test_a_slide_is_named_by_its_file_as_listings_name_it(slide, tmp_path, name, slide_id):
    copied = tmp_path / name
    copied.write_bytes(slide.read_bytes())
    tiling.tile_slide(copied, tmp_path / "a.zarr", config=CONFIG)

    assert tiling.PatchStore.open(tmp_path / "a.zarr").info.slide_id == slide_id


def test_a_slide_is_cut_by_the_default_settings(tmp_path):
    slide = write_slide(tmp_path / "a.tif", [tissue(900, 800)])
    tiling.tile_slide(slide, tmp_path / "a.zarr")
    found = tiling.PatchStore.open(tmp_path / "a.zarr")

    assert (found.geometry.patch_px, found.geometry.target_mpp) == (512, 0.5)


# --- items and slices ------------------------------------------------------------------------


def test_an_item_is_a_patch_and_negative_numbers_count_from_the_end(store):
    patches = store.read(np.arange(len(store)))

    assert store[0].shape == (32, 32, 3)
    assert store[0].dtype == np.uint8
    for row in range(-len(store), len(store)):
        assert np.array_equal(store[row], patches[row])
    assert np.array_equal(store[np.int64(2)], patches[2])
    assert np.array_equal(list(store), patches)  # ends at the end


numbers = st.none() | st.integers(-40, 40)


@given(start=numbers, stop=numbers, step=numbers.filter(lambda n: n != 0))
def test_slices_are_those_of_a_list(store, start, stop, step):
    chosen = slice(start, stop, step)
    rows = list(range(len(store)))[chosen]

    assert store[chosen].shape == (len(rows), 32, 32, 3)
    assert np.array_equal(store[chosen], store.read(rows))


@pytest.mark.parametrize("beyond", [0, 7, -1, -100])
def test_a_number_beyond_the_end_is_an_index_error_that_names_the_store(store, beyond):
    row = len(store) + beyond if beyond >= 0 else -len(store) + beyond
    with pytest.raises(PatchIndexError, match=rf"case_1.zarr: no patch {row}; there are "):
        store[row]
    assert issubclass(PatchIndexError, IndexError)
    assert issubclass(PatchIndexError, StoreError)


@pytest.mark.parametrize("index", [1.0, "1", None, [0, 1], np.array([0, 1])])
def test_other_kinds_of_index_are_refused(store, index):
    with pytest.raises(TypeError, match=r"case_1.zarr: .* integer or a slice.*read\(rows\)"):
        store[index]


def test_a_step_of_zero_is_refused_as_lists_do(store):
    with pytest.raises(ValueError, match="step"):
        store[::0]


# --- datasets --------------------------------------------------------------------------------


def test_items_of_a_dataset_are_what_training_feeds_to_a_model(store):
    dataset = store.as_dataset()
    rows = np.arange(len(store))
    expected = to_unit_range(read_batch(store, rows).pixels, torch.device("cpu"))

    assert len(dataset) == len(store)
    patch, label = dataset[3]
    assert patch.shape == (3, 32, 32)
    assert patch.dtype == np.float32
    assert type(label) is int
    assert np.array_equal(np.stack([patch for patch, _ in dataset]), expected.numpy())
    assert [label for _, label in dataset] == store.label.tolist()
    assert np.array_equal(dataset[-1][0], dataset[len(store) - 1][0])
    with pytest.raises(IndexError, match=f"the dataset has {len(store)}"):
        dataset[len(store)]


class Mixed:
    """A store of all labels, one patch unreadable; its patches hold their own number."""

    label = np.array([1, -1, 0, 1, 0], np.int8)
    unreadable = np.array([0, 0, 0, 1, 0], bool)

    def __len__(self):
        return 5

    def read(self, indices):
        return np.stack([np.full((2, 2, 3), row, np.uint8) for row in indices])


def test_a_labelled_dataset_keeps_what_training_uses():
    kept = tiling.PatchStore.as_dataset(Mixed(), labelled=True)
    every = tiling.PatchStore.as_dataset(Mixed())

    assert [(round(255 * float(patch[0, 0, 0])), label) for patch, label in kept] == [
        (0, 1), (2, 0), (4, 0)
    ]  # fmt: skip
    assert [label for _, label in every] == [1, -1, 0, 1, 0]


def test_a_data_loader_makes_tensors_of_a_dataset(store):
    dataset = store.as_dataset()
    loader = DataLoader(dataset, batch_size=4, num_workers=0)
    patches, labels = next(iter(loader))

    assert patches.dtype == torch.float32
    assert patches.shape == (4, 3, 32, 32)
    assert labels.dtype == torch.int64
    assert sum(len(batch) for batch, _ in loader) == len(store)
    joined = ConcatDataset([Subset(dataset, [5, 1]), dataset])
    assert len(joined) == len(store) + 2
    assert np.array_equal(joined[1][0], dataset[1][0])


def test_a_dataset_can_be_pickled_for_workers_after_it_was_read(store):
    dataset = store.as_dataset()
    first = dataset[0][0]
    copied = pickle.loads(pickle.dumps(dataset))

    assert isinstance(copied, PatchDataset)
    assert np.array_equal(copied[0][0], first)
    assert len(copied) == len(dataset)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_give_the_same_batches(store, method):
    dataset = store.as_dataset()
    dataset[0]
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=method)
    found = torch.cat([patches for patches, _ in loader])

    assert np.array_equal(found.numpy(), np.stack([patch for patch, _ in dataset]))
