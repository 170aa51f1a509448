"""Descriptions in the form of WSInfer's model zoo (docs/other_models.md)."""

import json

import pytest

from tests.helpers.external_models import TRANSFORM, describe
from wsi_pipeline.config.zoo_config import Normalize, Resize, ToTensor, read_zoo_config
from wsi_pipeline.errors import CheckpointError


def read(tmp_path, **changes):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(describe(**changes)))
    return read_zoo_config(path)


def test_all_of_it_is_read(tmp_path):
    found = read(tmp_path)
    assert found.class_names == ("benign", "grade 3", "grade 4")
    assert (found.patch_px, found.mpp, found.architecture) == (32, 0.5, "colournet")
    normalise = Normalize((0.7, 0.6, 0.5), (0.2, 0.25, 0.5))
    assert found.transform == (Resize(16), ToTensor(), normalise)


@pytest.mark.parametrize(
    "changes",
    [
        {"spec_version": None},
        {"architecture": None},
        {"transform": [{"name": "ToTensor", "arguments": None}]},
        {"author": "somebody"},
        {"spacing_um_px": 1},
    ],
)
def test_what_may_be_left_out_or_added(tmp_path, changes):
    assert read(tmp_path, **changes).patch_px == 32


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"size": [16, 24]}, Resize((16, 24))),
        ({"size": [16]}, Resize(16)),
        ({"size": 16, "interpolation": "bicubic", "antialias": True}, Resize(16, "bicubic")),
        ({"size": 16, "interpolation": 0}, Resize(16, "nearest")),
    ],
)
def test_the_arguments_of_resize(tmp_path, arguments, wanted):
    steps = [{"name": "Resize", "arguments": arguments}, {"name": "ToTensor"}]
    assert read(tmp_path, transform=steps).transform[0] == wanted


def step(name, **arguments):
    return [{"name": "ToTensor"}, {"name": name, "arguments": arguments}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": None}, "it has no class_names"),
        ({"num_classes": 2}, "num_classes is 2, but class_names has 3"),
        ({"num_classes": True, "class_names": ["a"]}, "num_classes is True"),
        ({"class_names": ["a", "a", "b"]}, "same name twice"),
        ({"class_names": "abc"}, "class_names must be a list of names, got 'abc'"),
        ({"class_names": [], "num_classes": 0}, "they must agree"),
        ({"patch_size_pixels": 0}, "patch_size_pixels must be a positive whole number, got 0"),
        ({"patch_size_pixels": 350.5}, "patch_size_pixels"),
        ({"spacing_um_px": 0}, "spacing_um_px must be a positive number"),
        ({"spacing_um_px": "0.5"}, "spacing_um_px must be a positive number"),
        ({"spec_version": "2.0"}, "spec_version must be '1.0', got '2.0'"),
        ({"architecture": 18}, "architecture must be text"),
        ({"transform": {}}, "transform must be a list"),
        ({"transform": []}, "ToTensor once, got 0 times"),
        ({"transform": ["ToTensor"]}, "not a name with arguments"),
        ({"transform": TRANSFORM[::-1]}, "Normalize before ToTensor"),
        ({"transform": step("CenterCrop", size=3)}, "the step 'CenterCrop'; Resize, ToTensor"),
        ({"transform": step("Resize")}, "Resize needs a size"),
        ({"transform": step("Resize", size=0)}, "Resize needs a size"),
        ({"transform": step("Resize", size=[1, 2, 3])}, "Resize needs a size"),
        ({"transform": step("Resize", size=3, max_size=4)}, "max_size=4 is not known"),
        ({"transform": step("Resize", size=3, interpolation="lanczos")}, "got 'lanczos'"),
        ({"transform": step("Resize", size=3, side=4)}, "no argument side"),
        ({"transform": step("Normalize", mean=[0, 0, 0])}, "three numbers as std, got None"),
        ({"transform": step("Normalize", mean=[0], std=[1])}, "three numbers as mean"),
        ({"transform": step("Normalize", mean=[0, 0, 0], std=[1, 0, 1])}, "positive std"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path, changes, message):
    with pytest.raises(CheckpointError) as error:
        read(tmp_path, **changes)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff", "NaN", '{"a": ' * 100_000])
def test_malformed_files_are_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config.json: "):
        read_zoo_config(path)
