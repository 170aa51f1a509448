"""A checkpoint gives back the model that was saved, or a sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from wsi_pipeline.errors import CheckpointError
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import (
    CheckpointMeta,
    digest,
    load_checkpoint,
    read_meta,
    save_checkpoint,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("patchnet", m=5, stride=5, filters=8, depth=2)


@pytest.fixture
def meta(model):
    return CheckpointMeta(
        model="patchnet",
        options=model.options,
        patch_px=15,
        target_mpp=0.5,
        training={"lr": 1e-4, "augment": {"flips": True}},
        fingerprint="f",
        versions={"wsi-pipeline": "0.1.0"},
        train_slides=("a", "b"),
        val_slides=("c",),
        train_patients=("p",),
        val_patients=("q",),
        epoch=3,
        metrics={"val_loss": 0.1, "val_roc_auc": 0.9},
    )


@pytest.fixture
def path(tmp_path, model, meta):
    save_checkpoint(tmp_path / "checkpoint.safetensors", model, meta)
    return tmp_path / "checkpoint.safetensors"


def test_the_model_and_all_beside_it_come_back(path, model, meta):
    loaded, found = load_checkpoint(path)

    assert found == meta
    assert not loaded.training
    x = torch.rand(2, 3, 15, 15)
    assert torch.equal(loaded(x), model.eval()(x))


def test_weights_in_channels_last_come_back(path, model, meta):
    save_checkpoint(path, model.to(memory_format=torch.channels_last), meta)

    loaded, _ = load_checkpoint(path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_the_same_model_gives_the_same_bytes(path, tmp_path, model, meta):
    save_checkpoint(tmp_path / "again.safetensors", model, meta)

    assert digest(path) == digest(tmp_path / "again.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", model, replace(meta, epoch=4))
    assert digest(path) != digest(tmp_path / "other.safetensors")


def test_others_may_read_the_file(path):
    assert path.stat().st_mode & 0o044 == 0o044


def test_plain_safetensors_opens_it(path):
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["wsi_pipeline"])
        assert header["meta"]["target_mpp"] == 0.5
        assert len(list(file.keys())) > 4


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    for read in (load_checkpoint, read_meta, digest):
        with pytest.raises(CheckpointError, match="checkpoint"):
            read(tmp_path / "checkpoint.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1], ids=str)
def test_a_cut_file_is_damaged(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])

    with pytest.raises(CheckpointError, match="damaged, or not a safetensors file"):
        load_checkpoint(path)


def test_a_flipped_bit_in_the_weights_is_noticed(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)

    with pytest.raises(CheckpointError, match="not those that were written"):
        load_checkpoint(path)


def rewrite_header(path, edit):
    """Change the JSON in the header of a safetensors file, as a flipped byte or an editor would."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        text = edit(file.metadata()["wsi_pipeline"])
    safetensors.torch.save_file(tensors, path, metadata={"wsi_pipeline": text})


def test_a_changed_header_is_noticed(path):
    """A flipped digit in the resolution changed which patches a model was given."""
    rewrite_header(path, lambda text: text.replace('"target_mpp": 0.5', '"target_mpp": 0.7'))

    for read in (load_checkpoint, read_meta):
        with pytest.raises(CheckpointError, match="its header is not the one that was written"):
            read(path)


def without_digest(text, **changes):
    header = json.loads(text)
    del header["header_sha256"]
    header["meta"].update(changes)
    return json.dumps(header)


def test_checkpoints_of_earlier_versions_are_read(path, meta):
    rewrite_header(path, without_digest)

    assert load_checkpoint(path)[1] == meta


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_px": "15"},
        {"patch_px": 0},
        {"target_mpp": None},
        {"options": [1]},
        {"class_names": 5},
        {"train_slides": [1, 2]},
        {"model": ["vgg16"]},
        {"image_shape": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_a_header_of_another_shape_is_a_damaged_one(path, changes):
    rewrite_header(path, lambda text: without_digest(text, **changes))

    with pytest.raises(CheckpointError, match="damaged checkpoint header"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", ["[1]", "null", "{", "[" * 100_000, '{"schema": 1}'], ids=len)
def test_a_header_that_is_no_header_is_refused(path, text):
    rewrite_header(path, lambda _: text)

    with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint"):
        load_checkpoint(path)


class TouchesWhenLoaded:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "plain"])
def test_a_pickle_is_never_opened(path, tmp_path, new_format):
    touched = tmp_path / "touched"
    what = {"a": TouchesWhenLoaded(touched)}
    torch.save(what, path, _use_new_zipfile_serialization=new_format)

    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(path)
    assert not touched.exists()


def test_a_checkpoint_of_another_program_is_distinguished(path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(path)


def test_a_model_unknown_here_is_named(path, model, meta):
    save_checkpoint(path, model, replace(meta, model="resnet"))

    with pytest.raises(CheckpointError, match=r"'resnet' cannot be rebuilt here"):
        load_checkpoint(path)


def test_weights_of_another_shape_are_refused(path, model, meta):
    save_checkpoint(path, model, replace(meta, options={**meta.options, "m": 7}))

    with pytest.raises(CheckpointError, match="cannot be rebuilt here"):
        load_checkpoint(path)


def test_nothing_is_left_beside_the_checkpoint(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]
