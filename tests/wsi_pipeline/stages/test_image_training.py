"""Training on folders of images, by the command."""

import json

import numpy as np
import pytest
import torch

from tests.helpers.striped_images import make_folder, rows_of
from wsi_pipeline.cli import app as cli
from wsi_pipeline.cohort.image_folder import read_images
from wsi_pipeline.cohort.image_store import choose_equal, open_images, raise_to_parity
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import load_checkpoint


def draws_of(run, model="patchnet"):
    return {
        (row["slide_id"], row["label"]): int(row["drawn"])
        for row in rows_of(run / "models" / model / "draws.csv")
    }


def train_small(run, *settings):
    channels = open_images(run / "tiles", read_images(run / "images.csv")).kind.shape[2]
    small = f"model.options={{m: 5, filters: 2, depth: 1, channels: {channels}}}"
    words = ["train", str(run), "--model", "patchnet", "--quiet", "--set", small]
    return cli.main([*words, *(part for s in ("max_epochs=2", *settings) for part in ("--set", s))])


def test_patchnets_pass_over_all_images_in_each_epoch(tmp_path, caplog):
    """PatchNet papers 1 and 2 count epochs so; draws are optional."""
    run = tiled(tmp_path)
    trained = [e for e in read_images(run / "images.csv") if e.split == "train"]
    assert train_small(run) == 0
    of_label = {(e.patient, str(e.label)): 2 for e in trained}  # two epochs
    assert {key: n for key, n in draws_of(run).items() if n} == of_label
    assert not caplog.messages
    history = rows_of(run / "models" / "patchnet" / "history.csv")
    assert all(float(row["seconds"]) > 0 for row in history)

    assert train_small(run, "steps_per_epoch=3") == 0
    assert "no effect: train.patchnet.steps_per_epoch=3" in caplog.text
    assert train_small(run, "sampling=balanced", "steps_per_epoch=3") == 0
    assert sum(draws_of(run).values()) == 2 * 3 * 4


def test_frozen_random_weights_get_a_warning(tmp_path, caplog):
    """Without a file of weights, a probe would be one of noise."""
    run = tiled(tmp_path)
    words = ["train", str(run), "--model", "vgg11_pooled", "--quiet", "--set", "freeze=all"]
    for setting in ("model.options={width: 0.02}", "steps_per_epoch=1", "max_epochs=1"):
        words += ["--set", setting]
    assert cli.main(words) == 0
    assert "train.vgg11_pooled.freeze=all keeps random weights" in caplog.text
    assert "--weights FILE" in caplog.text


def test_the_smaller_class_is_repeated_where_asked(tmp_path):
    """PatchNet paper 1, 4.2: malignant images are up-sampled to parity."""
    folder = make_folder(tmp_path / "data", n=8)
    rows = [f"rows/{i:02d}.png,{'val' if i > 6 else 'train'}" for i in range(8)]
    rows += [f"columns/{i:02d}.png,{'val' if i > 6 else 'train'}" for i in (0, 1, 2, 7)]
    (tmp_path / "t.csv").write_text("file,split\n" + "\n".join(rows) + "\n")
    run = tmp_path / "run"
    words = ["tile", str(folder), "--out", str(run), "--quiet", "--set", "images.channels=1"]
    words += ["--set", f"images.table={tmp_path / 't.csv'}"]
    assert cli.main([*words, "--set", "images.equal_classes=upsample"]) == 0
    assert train_small(run, "max_epochs=1") == 0
    drawn = draws_of(run)
    by_class = {label: [n for (_, y), n in drawn.items() if y == label and n] for label in "01"}
    assert sorted(map(sum, by_class.values())) == [7, 7]
    assert {tuple(sorted(counts)) for counts in by_class.values()} == {(1,) * 7, (2, 2, 3)}


def test_balancing_by_repeating_and_by_leaving_out():
    labels = np.array([0] * 10 + [1] * 4 + [-1], np.int8)
    raised = raise_to_parity(labels, seed=0)
    counts = np.bincount(raised, minlength=15)
    assert (counts[:10] == 1).all()
    assert counts[10:14].sum() == 10
    assert set(counts[10:14]) == {2, 3}
    assert counts[14] == 0
    chosen = choose_equal(labels, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 4]
    assert len(set(chosen)) == 8
    assert np.array_equal(chosen, choose_equal(labels, seed=0))


def tiled(tmp_path):
    make_folder(tmp_path / "data", n=4, channels=3, height=32, width=40)
    run = tmp_path / "run"
    tile = ["tile", str(tmp_path / "data"), "--out", str(run), "--quiet"]
    more = ["--set", "images.channels=3", "--set", "splits.folds=4"]
    assert cli.main([*tile, *more]) == 0
    return run


def test_training_starts_from_a_weights_file_and_names_the_layer_that_does_not_fit(tmp_path):
    run = tiled(tmp_path)
    source = build_model("vgg19", width=1 / 32)
    torch.save(source.state_dict(), tmp_path / "it's vgg19.pth")
    train = ["train", str(run), "--model", "cam", "--quiet", "--set", "steps_per_epoch=1"]
    train += ["--set", "max_epochs=1", "--set", "batch_size=2", "--set", "lr=1.0e-30"]
    train += ["--weights", str(tmp_path / "it's vgg19.pth")]
    assert cli.main([*train, "--set", "model.options.width=0.03125"]) == 0
    trained, _ = load_checkpoint(run / "models" / "cam" / "checkpoint.safetensors")
    assert torch.equal(trained.features[34].weight, source.features[34].weight)

    assert cli.main([*train, "--set", "model.options.width=0.0625"]) == 1
    assert "layer 'features.0.weight' is (2, 3, 3, 3)" in (run / "failures.csv").read_text()
    assert cli.main([*train[:3], "patchnet", *train[4:]]) == 1
    assert "cannot start from ImageNet weights" in (run / "failures.csv").read_text()


@pytest.mark.slow
def test_every_model_trains_and_scores_on_images(tmp_path):
    run = tiled(tmp_path)
    names = {"width": ("vgg16", "vgg11", "vgg11_pooled", "vgg19", "cam", "resnet18"),
             "filters": ("patchnet", "precision_patchnet")}  # fmt: skip
    config = tmp_path / "c.yaml"
    lines = ["train:"]
    for name in names["width"]:
        lines += [f"  {name}: {{model: {{options: {{width: 0.03125}}}}, steps_per_epoch: 1, "
                  "max_epochs: 1, batch_size: 2}"]  # fmt: skip
    for name in names["filters"]:
        lines += [f"  {name}: {{model: {{options: {{m: 5, filters: 2, depth: 1}}}}, "
                  "steps_per_epoch: 1, max_epochs: 1}"]  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    more = ["--config", str(config), "--quiet"]
    assert cli.main(["train", str(run), *more]) == 0
    assert cli.main(["predict", str(run), *more]) == 0
    assert cli.main(["evaluate", str(run), *more]) == 0
    for name in (*names["width"], *names["filters"]):
        metrics = json.loads((run / "evaluation" / name / "metrics.json").read_text())
        assert metrics["patch"]["n"] == 2
        assert metrics["strict"] == ("patchnet" in name)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from wsi_pipeline.training import loop as training

    run = tiled(tmp_path)
    train = ["train", str(run), "--model", "patchnet", "--quiet", "--set", "max_epochs=3"]
    train += ["--set", "model.options={m: 5, filters: 2, depth: 1}", "--set", "steps_per_epoch=3"]
    train += ["--set", "augment.zoom=1.2", "--set", "augment.rotate_180=true"]
    assert cli.main(train) == 0
    checkpoint = run / "models" / "patchnet" / "checkpoint.safetensors"
    undisturbed = checkpoint.read_bytes()
    write = training.write_history

    def die(path, history):
        write(path, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_history", die)
    assert cli.main([*train, "--overwrite"]) == 130
    monkeypatch.setattr(training, "write_history", write)
    assert cli.main(train) == 0
    assert checkpoint.read_bytes() == undisturbed


def test_training_without_a_split_says_how_to_make_one(tmp_path, capsys):
    make_folder(tmp_path / "data", n=2)
    run = tmp_path / "run"
    tile = ["tile", str(tmp_path / "data"), "--out", str(run), "--quiet"]
    assert cli.main([*tile, "--set", "images.channels=1"]) == 0
    assert cli.main(["train", str(run), "--model", "patchnet", "--quiet"]) == 1
    assert "tile again with splits" in capsys.readouterr().err
