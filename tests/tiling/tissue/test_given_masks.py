"""A user's tissue mask, against counting pixels and shapely."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from tests.helpers.slides import halve, tissue, write_slide
from tiling.build import tile_fingerprint, tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.errors import TissueError
from tiling.geometry import resolve_geometry
from tiling.readers import mask_picture
from tiling.store import PatchStore
from tiling.tissue import given_masks as masks
from tiling.tissue.given_masks import find_mask, read_tissue_mask

SIZE = (1000, 600)
MASK = np.random.default_rng(0).random((120, 200)) < 0.4
XY = np.array([[0, 0], [13, 27], [700, 401], [950, 580], [333, 111]])


def geometry(side: int):
    return resolve_geometry(TileConfig(target_mpp=0.5, patch_px=side), slide_mpp=(0.5, 0.5))


def write(path: Path, values: np.ndarray, **options) -> Path:
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values, **options)
    return path


def read(path: Path, size=SIZE, wanted=(1, 1)):
    return read_tissue_mask(path, slide_size=size, wanted_px=wanted)


def share_of_tile(mask: np.ndarray, size, corner, side) -> float:
    """By definition: the mask blown up to level 0, where its pixels are whole."""
    blown = np.kron(mask, np.ones((size[1] // mask.shape[0], size[0] // mask.shape[1])))
    x, y = corner
    return float(blown[y : y + side, x : x + side].sum() / side**2)


@pytest.mark.parametrize(
    ("name", "values", "options"),
    [
        ("a.png", MASK, {}),
        ("a.png", MASK.astype(np.uint8) * 7, {}),
        ("a.png", np.dstack([MASK * 0, MASK * 9, MASK * 0]).astype(np.uint8), {}),
        ("a.png", np.dstack([MASK * 9, np.full_like(MASK, 255)]).astype(np.uint8), {}),
        ("a.png", np.dstack([np.full((*MASK.shape, 3), 9), MASK * 255]).astype(np.uint8), {}),
        ("a.tif", MASK.astype(np.uint8) * 255, {}),
        ("a.tiff", MASK.astype(np.uint8), {"tile": (32, 16), "compression": "deflate"}),
        ("a.tif", MASK.astype(np.uint16) * 300, {"rowsperstrip": 7, "compression": "lzw"}),
        ("a.tif", MASK.astype(np.float32), {"tile": (64, 64)}),
        ("a.tif", MASK, {"photometric": "minisblack"}),
        ("a.tif", ~MASK, {"photometric": "miniswhite"}),
        ("a.tif", ~MASK, {"photometric": "miniswhite", "tile": (32, 16)}),
        ("a.tif", np.where(MASK, 55, 255).astype(np.uint8), {"photometric": "miniswhite"}),
        (
            "a.tif",
            MASK.astype(np.uint8),
            {"photometric": "palette", "colormap": np.eye(3, 256, 1, np.uint16)},
        ),
        ("a.tif", np.dstack([MASK * 0, MASK * 9, MASK * 0]).astype(np.uint8), {}),
    ],
)
@pytest.mark.parametrize("budget", [2**24, 1500])
def test_what_is_not_zero_is_tissue(tmp_path, monkeypatch, name, values, options, budget):
    monkeypatch.setattr(masks, "MASK_PX", budget)
    found = read(write(tmp_path / name, values, **options))

    side = 20 if budget > 1500 else 100  # of a tile that is whole pixels of the mask as held
    corners = np.array([[0, 0], [5 * side, 3 * side], [9 * side, 5 * side]])
    expected = [share_of_tile(MASK, SIZE, corner, side) for corner in corners]
    fraction = found.meter(geometry(side))(corners)
    assert fraction == pytest.approx(expected, abs=1e-6)
    assert found.slide_share == pytest.approx(MASK.mean(), abs=1e-6)


def test_a_mask_held_whole_is_measured_to_the_fraction_of_its_pixels(tmp_path):
    found = read(write(tmp_path / "a.png", MASK))

    expected = [share_of_tile(MASK, SIZE, corner, 33) for corner in XY]
    assert found.meter(geometry(33))(XY) == pytest.approx(expected, abs=1e-6)


def test_of_a_pyramid_the_smallest_level_that_is_fine_enough_is_read(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        options = {"tile": (32, 32), "compression": "deflate"}
        file.write(np.full((480, 800), 255, np.uint8), subifds=2, **options)
        file.write(MASK[::1].repeat(2, 0).repeat(2, 1).astype(np.uint8), subfiletype=1, **options)
        file.write(MASK.astype(np.uint8), subfiletype=1, **options)

    assert read(path, wanted=(150, 100)).share.shape == (120, 200)
    assert read(path, wanted=(250, 100)).share.shape == (240, 400)
    assert read(path, wanted=(401, 100)).share.all()  # level 0
    assert read(path, wanted=(9000, 9000)).share.all()


def test_sparse_tiles_are_no_tissue(tmp_path):
    path = tmp_path / "a.tif"
    full = np.ones((32, 32), np.uint8)
    tifffile.imwrite(path, iter([full, None, None, full]), shape=(64, 64), dtype=np.uint8,
                     tile=(32, 32))  # fmt: skip

    assert read(path, size=(640, 640)).slide_share == 0.5


def test_a_mask_as_large_as_the_slide_is_held_in_few_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "MASK_PX", 10_000)
    path = write(tmp_path / "a.tif", np.ones((3000, 4001), np.uint8), tile=(256, 256),
                 compression="deflate")  # fmt: skip

    found = read(path, size=(4001, 3000))

    assert found.share.size <= 10_000
    assert found.slide_share == pytest.approx(1)
    assert found.meter(geometry(100))(np.array([[3900, 2900]])) == pytest.approx([1])


def square(x: float, y: float, side: float, name: str | None = None) -> dict:
    box = shapely.box(x, y, x + side, y + side)
    properties = {"objectType": "annotation"}
    if name:
        properties["classification"] = {"name": name}
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(box)),
            "properties": properties}  # fmt: skip


def write_geojson(path: Path, *features: dict) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def test_polygons_are_measured_exactly(tmp_path):
    path = write_geojson(
        tmp_path / "a.geojson",
        square(10.5, 20.25, 400, "Tissue"),
        square(300, 300, 250),
        square(100, 100, 33, "Exclude"),
        square(0, 0, 900, "Ignore*"),
    )
    area = shapely.union(shapely.box(10.5, 20.25, 410.5, 420.25), shapely.box(300, 300, 550, 550))
    area = area.difference(shapely.box(100, 100, 133, 133))
    corners = np.array([[0, 0], [97, 101], [380, 390], [500, 500], [900, 500]])

    found = read(path)

    expected = [
        area.intersection(shapely.box(x, y, x + 64, y + 64)).area / 64**2 for x, y in corners
    ]
    assert found.meter(geometry(64))(corners) == pytest.approx(expected, abs=1e-6)
    assert found.slide_share == pytest.approx(area.area / 600_000)
    assert found.on_grid((600, 1000)).mean() == pytest.approx(area.area / 600_000, abs=0.005)


def test_polygons_that_stick_out_are_no_tissue_beyond_the_slide(tmp_path):
    """A tile over the edge is white there, whatever was drawn: it was counted as tissue."""
    found = read(write_geojson(tmp_path / "a.geojson", square(900, 500, 400)))

    assert found.meter(geometry(64))(np.array([[968, 536]])) == pytest.approx(0.5)
    assert found.slide_share == pytest.approx(100 * 100 / 600_000)


def test_a_picture_is_drawn_where_it_lies(tmp_path):
    found = read(write(tmp_path / "a.png", MASK))

    assert np.array_equal(found.on_grid((120, 200)), MASK)
    assert np.array_equal(found.on_grid((240, 400))[::2, ::2], MASK)


def test_a_slides_mask_is_found_by_its_id(tmp_path):
    with pytest.raises(TissueError, match=r"a: no tissue mask in .* \(looked for a.tif, a.tiff"):
        find_mask(tmp_path, "a")
    path = write(tmp_path / "a.png", MASK)
    assert find_mask(tmp_path, "a") == path
    write(tmp_path / "a.tif", MASK)
    with pytest.raises(TissueError, match="more than one tissue mask"):
        find_mask(tmp_path, "a")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "neither a TIFF nor a PNG by its content"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "a.png: "),
        ("a.tif", b"II*\0", "a.tif: cannot be read as a mask"),
        ("a.tif", b"no tiff at all", "a.tif: is neither a TIFF nor a PNG"),
        ("a.geojson", b"{", "a.geojson: is not well-formed JSON"),
        ("a.geojson", b'{"type": "Point"}', "a.geojson: .* type 'Point'"),
        ("a.geojson", b'{"type": "FeatureCollection", "features": []}', "no polygon of tissue"),
    ],
)
def test_a_damaged_mask_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(TissueError, match=message):
        read(path)


def test_a_mask_cut_short_is_named(tmp_path):
    noise = np.random.default_rng(1).integers(0, 255, (120, 200), np.uint8)
    for name in ("a.png", "a.tif"):
        path = write(tmp_path / name, noise)
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(TissueError, match=rf"{name}: cannot be read as a mask"):
            read(path)


def test_a_mask_of_another_shape_is_refused(tmp_path):
    for name in ("a.png", "a.tif"):
        path = write(tmp_path / name, MASK.T.copy())
        with pytest.raises(TissueError, match="120 x 200 px, another shape than the slide of 1000"):
            read(path)
    read(write(tmp_path / "a.png", MASK[:-1]))  # rounding


def test_what_cannot_be_read_in_bounded_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_picture, "MAX_PNG_PX", 1000)
    monkeypatch.setattr(mask_picture, "MAX_SEGMENT_BYTES", 1000)
    with pytest.raises(TissueError, match="too many for a PNG"):
        read(write(tmp_path / "a.png", MASK))
    with pytest.raises(TissueError, match="strips of 200 x 120 px"):
        read(write(tmp_path / "a.tif", MASK.astype(np.uint8), compression="deflate"))


def test_polygons_off_the_slide_are_refused(tmp_path):
    with pytest.raises(TissueError, match="off the slide of 1000 x 600"):
        read(write_geojson(tmp_path / "a.geojson", square(2000, 0, 9)))


@pytest.mark.parametrize("name", ["a.png", "a.geojson"])
def test_tiling_goes_by_the_mask(tmp_path, name):
    pixels = tissue(512, 512)
    slide = write_slide(tmp_path / "a.tif", [pixels, halve(pixels)], mpp=0.5)
    folder = tmp_path / "private" / "masks"
    folder.mkdir(parents=True)
    if name == "a.png":
        write(folder / name, np.kron([[1, 0], [0, 0]], np.ones((8, 8))).astype(np.uint8))
    else:
        write_geojson(folder / name, square(0, 0, 256))
    config = TileConfig(target_mpp=0.5, patch_px=128, tissue=TissueConfig(mask=folder))

    tile_slide(slide, tmp_path / "a.zarr", slide_id="a", config=config, qc_path=tmp_path / "q.png")

    with PatchStore.open(tmp_path / "a.zarr") as store:
        assert store.coords.tolist() == [[0, 0], [128, 0], [0, 128], [128, 128]]
        assert store.tissue.tolist() == [1, 1, 1, 1]
    written = (tmp_path / "a.zarr" / "zarr.json").read_text()
    assert '"masks"' in written
    assert "private" not in written


def test_another_mask_makes_the_store_stale(tmp_path):
    slide = write_slide(tmp_path / "a.tif", [tissue(256, 256)], mpp=0.5)
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    for folder, value in zip(folders, (1, 1, 2), strict=True):
        folder.mkdir()
        write(folder / "a.png", np.full((8, 8), value, np.uint8))

    def fingerprint(folder):
        config = TileConfig(tissue=TissueConfig(mask=folder))
        return tile_fingerprint(
            slide, slide_id="a", config=config, annotation_path=None, slide_label=None, mpp=None
        )

    one, same, other, none = (fingerprint(folder) for folder in [*folders, None])
    assert one == same
    assert len({one, other, none}) == 3
