"""PatchNet's map of a slide is that of the whole image at once, wherever windows meet."""

import numpy as np
import pytest
import torch

from tests.helpers.slides import break_file_tile, halve, tissue, write_slide
from tiling.contracts import TileConfig
from tiling.geometry import resolve_geometry
from tiling.resample import nearest_finer_level, read_resampled
from tiling.slide import open_slide
from wsi_pipeline.cohort.stains import MacenkoMap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps import dense_maps
from wsi_pipeline.heatmaps.dense_maps import check_mappable, map_slide
from wsi_pipeline.models import build_model

CPU = torch.device("cpu")
SIZE = (230, 170)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model("patchnet", m=7, filters=4, depth=3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # a border then shows
            torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.normal_(model.subnet.readout_weight, std=0.1)
    torch.nn.init.normal_(model.subnet.output.weight, std=2.0)
    return model


@pytest.fixture
def slide(tmp_path):
    pixels = tissue(*SIZE)
    with open_slide(write_slide(tmp_path / "s.tif", [pixels, halve(pixels)])) as slide:
        yield slide


def tiles(slide, *, target_mpp, everywhere=True):
    config = TileConfig(target_mpp=target_mpp, patch_px=16, edge="pad")
    geometry = resolve_geometry(config, slide_mpp=(0.5, 0.5))
    x, y = (np.arange(0, side, geometry.patch_l0) for side in slide.size)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.int64)
    return (grid if everywhere else grid[len(grid) // 2 : len(grid) // 2 + 2]), geometry


def whole_map(model, slide, geometry, *, recolour=lambda pixels: pixels):
    """All of the slide as one image, mapped at stride 1."""
    width, height = (int(side / s) for side, s in zip(slide.size, geometry.scale, strict=True))
    picture = read_resampled(
        slide,
        (0, 0),
        extent_l0=(width * geometry.scale[0], height * geometry.scale[1]),
        out_px=(width, height),
        level=nearest_finer_level(slide.level_downsamples, geometry.scale),
    )
    image = torch.from_numpy(recolour(picture)).permute(2, 0, 1).float() / 255
    return model.dense_map(image)[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("target_mpp", [0.5, 1.0])
def test_windows_join_to_the_map_of_the_whole_image(model, slide, monkeypatch, step, target_mpp):
    monkeypatch.setattr(dense_maps, "WINDOW_PX", 24)
    monkeypatch.setattr(dense_maps, "CHUNK_PX", 37)
    coords, geometry = tiles(slide, target_mpp=target_mpp)

    found = map_slide(model, slide, coords, geometry=geometry, step_px=step, device=CPU)

    whole = whole_map(model, slide, geometry)
    heatmap = found.heatmap
    assert heatmap.pixel_l0 == (round(step * geometry.scale[0]),) * 2
    at = [np.arange(n) * step + step // 2 for n in heatmap.values.shape]
    n_inside = [int((a < side).sum()) for a, side in zip(at, whole.shape, strict=True)]
    expected = whole[np.ix_(at[0][: n_inside[0]], at[1][: n_inside[1]])]
    shown = heatmap.values[: n_inside[0], : n_inside[1]]
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    assert found.n_unreadable == 0


def test_stains_are_mapped_before_the_model(model, slide, monkeypatch):
    monkeypatch.setattr(dense_maps, "CHUNK_PX", 37)
    coords, geometry = tiles(slide, target_mpp=0.5)
    stains = MacenkoMap(np.array([[0.6, 0.3], [0.7, 0.8], [0.4, 0.5]]), np.array([1.5, 2.0]))

    found = map_slide(
        model, slide, coords, geometry=geometry, step_px=1, device=CPU, stain_map=stains
    )

    expected = whole_map(model, slide, geometry, recolour=stains)
    height, width = expected.shape
    np.testing.assert_allclose(found.heatmap.values[:height, :width], expected, atol=1e-5)
    assert np.abs(expected - whole_map(model, slide, geometry)).max() > 1e-3


def test_a_resolution_that_is_no_multiple_does_not_drift_over_the_slide(model, slide):
    """2.3 level-0 px per px, heatmap pixels of 9: the value is that of the nearest patch."""
    coords, geometry = tiles(slide, target_mpp=1.15)
    found = map_slide(model, slide, coords, geometry=geometry, step_px=4, device=CPU)

    whole = whole_map(model, slide, geometry)
    values = found.heatmap.values
    assert found.heatmap.pixel_l0 == (9, 9)

    def lattice(n, side, shift=0):  # of each heatmap pixel's centre, the nearest patch
        index = np.rint(((np.arange(n) + 0.5) * 9 / 2.3 - 0.5 - 2) / 4).astype(int) + shift
        return index.clip(0, (side - 3) // 4) * 4 + 2

    def of(shift):
        places = [
            lattice(n, side, shift) for n, side in zip(values.shape, whole.shape, strict=True)
        ]
        return np.abs(values - whole[np.ix_(*places)])

    assert of(0).max() < 0.02  # grey levels are rounded chunk by chunk
    assert of(1).max() > 0.1


def test_only_tiles_are_mapped_and_read(model, slide, monkeypatch):
    coords, geometry = tiles(slide, target_mpp=0.5, everywhere=False)
    monkeypatch.setattr(dense_maps, "WINDOW_PX", 16)
    monkeypatch.setattr(dense_maps, "CHUNK_PX", 16)
    reads = []
    read = type(slide).read_region
    monkeypatch.setattr(
        type(slide), "read_region", lambda *a, **k: reads.append(a[1:]) or read(*a, **k)
    )

    found = map_slide(model, slide, coords, geometry=geometry, step_px=2, device=CPU)

    mapped = ~np.isnan(found.heatmap.values)
    expected = np.zeros_like(mapped)
    for x, y in coords.tolist():
        expected[y // 2 : y // 2 + 8, x // 2 : x // 2 + 8] = True
    np.testing.assert_array_equal(mapped, expected)
    assert len(reads) <= 3 * 4  # the two tiles and what is around them


def test_what_cannot_be_decoded_is_nan_and_counted(model, slide, monkeypatch):
    from tiling.errors import SlideError

    coords, geometry = tiles(slide, target_mpp=0.5)
    monkeypatch.setattr(dense_maps, "WINDOW_PX", 32)
    monkeypatch.setattr(dense_maps, "CHUNK_PX", 32)
    read = dense_maps.read_resampled

    def broken(slide, location, **options):
        if location == (96, 64):
            raise SlideError("cannot be decoded")
        return read(slide, location, **options)

    monkeypatch.setattr(dense_maps, "read_resampled", broken)
    found = map_slide(model, slide, coords, geometry=geometry, step_px=4, device=CPU)

    assert np.isnan(found.heatmap.values[16:24, 24:32]).all()
    assert found.n_unreadable == np.isnan(found.heatmap.values[:42, :57]).sum() > 0


def test_a_broken_file_tile_loses_what_is_near_it_and_nothing_else(model, tmp_path):
    """Once a chunk of 512 px was lost, and with it each window of 256 px that touches it."""
    pixels = tissue(256, 192)
    path = write_slide(tmp_path / "s.tif", [pixels], tile=(64, 64), compression="jpeg")
    with open_slide(path) as slide:
        coords, geometry = tiles(slide, target_mpp=0.5)
        whole = map_slide(model, slide, coords, geometry=geometry, step_px=1, device=CPU)
    break_file_tile(path, 5)  # the second of the second row
    with open_slide(path) as slide:
        found = map_slide(model, slide, coords, geometry=geometry, step_px=1, device=CPU)

    lost = np.isnan(found.heatmap.values)
    assert lost[61:131, 61:131].all()  # m = 7
    lost[64 - 35 : 128 + 35, 64 - 35 : 128 + 35] = False
    assert not lost.any()
    assert 70 * 70 <= found.n_unreadable <= 134 * 134
    assert found.n_mapped + found.n_unreadable == 256 * 192
    read = ~np.isnan(found.heatmap.values)
    np.testing.assert_allclose(found.heatmap.values[read], whole.heatmap.values[read], atol=1e-5)


def test_other_models_and_whole_image_preparation_are_refused():
    with pytest.raises(HeatmapError, match=r"only PatchNet .* not VGG16"):
        check_mappable(build_model("vgg16", width=0.1))
    for options in ({"normalise": "minmax"}, {"preprocess": {"colour_constancy": True}}):
        with pytest.raises(HeatmapError, match="as a whole"):
            check_mappable(build_model("patchnet", m=5, filters=2, depth=1, **options))
