"""This looks like that: the parts of an image that resemble prototypes, and what each adds."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.wsi_pipeline.explain.networks import draw_images, network
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.base import to_tensor
from wsi_pipeline.explain.prototypes import PrototypeSettings, cut, frame
from wsi_pipeline.models.prototype_sources import PrototypeSource

method = load_method("prototypes")


def trained(dtype=torch.float32):
    """A network whose prototypes are positions of two images, as after a push."""
    model, images = network("protopnet").to(dtype), draw_images(2, 96, 128)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) / 255
    records = []
    with torch.no_grad():
        z = model.latent(x)
        for number in range(4):
            of, position = number % 2, (number % z.shape[2], (2 * number + 1) % z.shape[3])
            model.prototypes[number] = z[of, :, position[0], position[1], None, None]
            box = (position[1] * 32, position[0] * 32, 32, 32)
            on_slide = tuple(10 * v for v in box) if number < 2 else None
            records.append(PrototypeSource(f"=image {of}", of, position, box, on_slide))
        model.last.weight.copy_(torch.tensor([[9.0, 8.0, 0.0, -3.0], [-7.5, 1.25, 10.0, 12.0]]))
    model.sources.set(records, images[[0, 1, 0, 1]])
    return model, images


@pytest.mark.parametrize("target", [1, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contributions_add_up_to_the_logit(target, dtype):
    """The model's own; to 1e-5 although contributions are in the hundreds."""
    model, images = trained(dtype)
    for image, found in zip(images, method.explain(model, images, target=target), strict=True):
        with torch.no_grad():
            logit = (2 * target - 1) * float(model(to_tensor(image, model.prototypes)))
        contributions = [one.contribution for one in found.details.resemblances]
        assert max(map(abs, contributions)) > 100
        assert sum(contributions) == pytest.approx(logit, abs=1e-5)
        assert found.details.logit == pytest.approx(logit, abs=1e-5)


def test_a_prototype_is_found_where_it_is_from():
    model, images = trained()
    for of, found in enumerate(method.explain(model, images)):
        for one in found.details.resemblances[of::2]:
            assert one.similarity == pytest.approx(9.2103, abs=1e-3)
            x, y, width, height = one.box_px
            row, column = one.source.position
            assert x <= 32 * column + 16 < x + width
            assert y <= 32 * row + 16 < y + height
            rows, columns = np.unravel_index(one.values.argmax(), one.values.shape)
            assert (rows // 32, columns // 32) == (row, column)


def test_the_map_is_the_weighted_sum_of_upsampled_similarities():
    model, images = trained(dtype=torch.float64)
    x = torch.from_numpy(images[:1]).permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        maps = model.similarity_maps(x)
        large = F.interpolate(maps, (96, 128), mode="bicubic", align_corners=False)[0].numpy()
        weights = (model.last.weight[1] - model.last.weight[0]).numpy()
    expected = sum(weight * one for weight, one in zip(weights, large, strict=True))
    (found,) = method(model, images[:1])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_table_has_prototypes_strongest_first_with_their_sources(tmp_path):
    model, images = trained()
    (found,) = method.explain(model, images[:1])
    files = found.details.write(tmp_path, "a")
    assert [f.name for f in files] == ["a.csv", "a.json", "a_prototypes.png"]
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    sizes = [abs(float(row["contribution"])) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    about = json.loads(files[1].read_text())
    total = sum(float(row["similarity"]) * float(row["weight"]) for row in rows)
    assert total == pytest.approx(about["logit"], abs=1e-5)
    assert about["sum_of_contributions"] == pytest.approx(total)
    assert about["target"] == 1
    by_number = {int(row["prototype"]): row for row in rows}
    first, last = by_number[0], by_number[3]
    assert (first["class"], last["class"]) == ("0", "1")
    assert first["source_id"] == "'=image 0"  # not a formula
    assert [first[f"source_{name}_px"] for name in ("x", "y")] == ["32", "0"]
    assert [first[f"source_{name}_l0"] for name in ("x", "width")] == ["320", "320"]
    assert [last[f"source_{name}_l0"] for name in ("x", "width")] == ["", ""]
    x, y, width, height = found.details.resemblances[3].box_px
    names = ("x_px", "y_px", "width_px", "height_px")
    assert [int(last[name]) for name in names] == [x, y, width, height]


def test_the_picture_shows_each_prototype_and_its_source(tmp_path):
    model, images = trained()
    heights = []
    for shown in (1, 4):
        (found,) = method.explain(model, images[:1], config=PrototypeSettings(shown=shown))
        files = found.details.write(tmp_path, f"a{shown}")
        picture = np.asarray(Image.open(files[2]))
        heights.append(picture.shape[0])
        is_frame = (picture == (255, 220, 0)).all(axis=2)
        left, right = is_frame[:, : picture.shape[1] // 4], is_frame[:, -picture.shape[1] // 4 :]
        assert left.any()  # in the image
        assert right.any()  # in the source
    assert heights[1] > 2 * heights[0]
    assert files[2].read_bytes() == found.details.write(tmp_path, "again")[2].read_bytes()


def test_prototypes_that_are_not_parts_of_images_yet_have_no_source(tmp_path):
    model = network("protopnet")
    (found,) = method.explain(model, draw_images(1, 64, 96, channels=1))
    files = found.details.write(tmp_path, "a")
    with files[0].open(newline="") as file:
        assert {row["source_id"] for row in csv.DictReader(file)} == {""}
    assert all(file.stat().st_size for file in files)


def test_a_frame_lies_inside_its_box():
    image = np.zeros((20, 30, 1), np.uint8)
    picture = frame(image, (4, 5, 6, 7))
    expected = np.zeros((20, 30), bool)
    expected[5:12, 4:10] = True
    expected[6:11, 5:9] = False
    assert ((picture == (255, 220, 0)).all(axis=2) == expected).all()
    assert cut(picture, (4, 5, 6, 7)).shape == (7, 6, 3)


@pytest.mark.parametrize("settings", [{"percentile": 101}, {"percentile": -1.0}, {"shown": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="percentile is in \\[0, 100\\] and at least 1 prototype"):
        PrototypeSettings(**settings)
