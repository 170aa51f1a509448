"""The stages of a ProtoPNet's training."""

import csv
import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.fake_store import FakeStore
from tests.helpers.tiny_training import CPU, PATIENTS, Killed, contents, kill_after, rows_of
from tiling.contracts import PatchOrigin
from wsi_pipeline.cohort.data import to_unit_range
from wsi_pipeline.config.reading import train_config
from wsi_pipeline.config.settings import ModelConfig, PreprocessConfig, ProtoPNetConfig
from wsi_pipeline.errors import ConfigError, ModelError, TrainingError
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.training import protopnet, train_model
from wsi_pipeline.training.course import Course, TrainingPatches
from wsi_pipeline.training.courses import choose_course
from wsi_pipeline.training.last_layer import fit_last_layer
from wsi_pipeline.training.protopnet import ProtoPNetCourse, measure_costs
from wsi_pipeline.training.push import check_push, measure_distances, push_prototypes

OPTIONS = {"base": "vgg11", "width": 1 / 16, "depth": 8, "prototypes_per_class": 3}
TINY = train_config(
    "protopnet",
    options=OPTIONS,
    batch_size=4,
    sampling="shuffle",
    max_epochs=4,
    protopnet={"warm_epochs": 1, "push_from": 2, "push_every": 2, "solver_steps": 50},
)


def stores():
    return [FakeStore("a", [0, 1] * 5, patch_px=64), FakeStore("b", [0] * 3, patch_px=64)]


def train(out, config=TINY, **options):
    return train_model(
        config,
        train=stores(),
        val=[FakeStore("c", [0, 1] * 3, patch_px=64)],
        patients=PATIENTS,
        out=out,
        device=CPU,
        **{"fingerprint": "f", **options},
    )


def build(**options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_model("protopnet", **OPTIONS | options).eval()


def read(*, of=None, size=4):
    """Batches of all training patches, as the loop reads them."""
    for store in of or stores():
        for start in range(0, len(store), size):
            rows = np.arange(start, min(start + size, len(store)))
            x = to_unit_range(torch.from_numpy(store.pixels[rows]), CPU)
            yield TrainingPatches(x, store.label[rows], rows, store.locate)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return out, train(out)


# ------------------------------------------------------------ stage 1


def hand_made():
    """One latent channel, given in place of images; prototypes 0 of class 0, 2 of class 1."""
    model = build(depth=1, prototypes_per_class=1)
    model.latent = lambda z: z
    with torch.no_grad():
        model.prototypes.copy_(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
    return model


def test_the_loss_is_cross_entropy_and_0_8_cluster_minus_0_08_separation():
    model = hand_made()
    z = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 1.0]]]])  # nearest to 0 by 0 and 1/4, to 2 by 1 and 1
    y = torch.tensor([0.0, 1.0])
    near, quarter, one = (math.log((d + 1) / (d + 1e-4)) for d in (0, 0.25, 1))
    margins = 1.5 * (near - one), 1.5 * (one - quarter)
    cross_entropy = np.mean([np.log1p(np.exp(-m)) for m in margins])
    costs = measure_costs(model, z, y)
    assert float(costs.cross_entropy.detach()) == pytest.approx(cross_entropy, abs=1e-6)
    assert float(costs.cluster.detach()) == pytest.approx((0 + 1) / 2)
    assert float(costs.separation.detach()) == pytest.approx((1 + 0.25) / 2)
    course = ProtoPNetCourse(train_config("protopnet"), model)
    expected = cross_entropy + 0.8 * 0.5 - 0.08 * 0.625
    assert float(course.loss(z, y).detach()) == pytest.approx(expected, abs=1e-6)


def test_costs_are_minima_over_the_classes_wherever_prototypes_are():
    """The published code takes max of (D - d) mask, wrong for d > D = 8 channels."""
    model = build()
    x = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    y = torch.tensor([0.0, 1, 1, 0, 1])
    with torch.no_grad():
        model.prototypes.copy_(6 * model.prototypes - 3)
        z, p = model.latent(x).double(), model.prototypes.double().flatten(1)
        costs = measure_costs(model, x, y)
    own, other = [], []
    for image, label in zip(z, y, strict=True):
        d = [
            min(float(((image[:, r, c] - q) ** 2).sum()) for r in range(2) for c in range(2))
            for q in p
        ]
        of_class = {0: min(d[:3]), 1: min(d[3:])}
        own.append(of_class[int(label)])
        other.append(of_class[1 - int(label)])
    assert max(own + other) > 8
    assert float(costs.cluster) == pytest.approx(np.mean(own), rel=1e-5)
    assert float(costs.separation) == pytest.approx(np.mean(other), rel=1e-5)


def groups_in(course, epoch):
    course.begin(epoch)
    model = course.model
    names = {id(p): n.partition(".")[0] for n, p in model.named_parameters()}
    found = {
        names[id(group["params"][0])]: (group["lr"], group["weight_decay"])
        for group in course.optimizer.param_groups
    }
    for group in course.optimizer.param_groups:
        assert len({names[id(p)] for p in group["params"]}) == 1
    trained = {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(found)
    n_trained = sum(len(group["params"]) for group in course.optimizer.param_groups)
    assert n_trained == sum(p.requires_grad for p in model.parameters())
    return found


def test_rates_and_decays_of_each_epoch_are_the_papers():
    course = ProtoPNetCourse(train_config("protopnet"), build())
    warm = {"add_on": (3e-3, 1e-3), "prototypes": (3e-3, 0.0)}
    for epoch in range(1, 6):
        assert groups_in(course, epoch) == warm
    of_warm = course.optimizer
    assert type(of_warm) is torch.optim.Adam
    for epoch, fall in {6: 0, 10: 0, 11: 1, 15: 1, 16: 2, 21: 3, 30: 4}.items():
        found = groups_in(course, epoch)
        assert found.keys() == {"features", "add_on", "prototypes"}
        for name, (rate, decay) in {"features": (1e-4, 1e-3), **warm}.items():
            assert found[name] == (pytest.approx(rate * 0.1**fall, rel=1e-9), decay)
    assert course.optimizer is not of_warm
    joint = course.optimizer
    course.begin(31)
    assert course.optimizer is joint  # its moments are kept


def test_stochastic_gradient_descent_is_an_option():
    config = train_config("protopnet", optimizer="sgd", momentum=0.8)
    course = ProtoPNetCourse(config, build())
    assert type(course.optimizer) is torch.optim.SGD
    assert groups_in(course, 6)["features"] == (1e-4, 1e-3)
    assert {group["momentum"] for group in course.optimizer.param_groups} == {0.8}


def test_in_warm_epochs_convolutions_and_last_layer_stay(tmp_path, monkeypatch):
    states = []
    begin = ProtoPNetCourse.begin

    def watch(self, epoch):
        states.append({k: v.clone() for k, v in self.model.state_dict().items()})
        begin(self, epoch)

    monkeypatch.setattr(ProtoPNetCourse, "begin", watch)
    own = replace(TINY.protopnet, push_from=3)
    train(tmp_path, replace(TINY, protopnet=own, max_epochs=3))
    _, first, second, third = states  # made; before epochs 1, 2 and 3

    def moved(before, after):
        return {k.partition(".")[0] for k in before if not torch.equal(before[k], after[k])}

    assert moved(first, second) == {"add_on", "prototypes"}
    assert moved(second, third) == {"features", "add_on", "prototypes"}


# ------------------------------------------------------------ stage 2


def test_a_pushed_prototype_is_a_latent_vector_of_its_class_bit_for_bit():
    model = build()
    start = model.prototypes.detach().clone()
    moved = push_prototypes(model, read())
    patches, vectors = {}, []
    for batch in read():
        with torch.no_grad():
            z = model.latent(batch.x)
        for image, vector, label, row in zip(batch.x, z, batch.label, batch.row, strict=True):
            origin = batch.locate(int(row))
            vectors.append((vector, label))
            patches[origin.source_id, origin.row] = image, vector, label
    for number, (source, label) in enumerate(
        zip(model.sources.records, model.prototype_class.tolist(), strict=True)
    ):
        best = min(
            float((v[:, r, c].double() - start[number].flatten().double()).square().sum())
            for v, y in vectors
            for r in range(2)
            for c in range(2)
            if y == label
        )
        assert moved[number] == best
        image, vector, own = patches[source.source_id, source.row]
        assert own == label
        row, column = source.position
        found = model.prototypes.detach()[number].flatten()
        assert torch.equal(found, vector[:, row, column])
        shown = (image * 255).round().byte().permute(1, 2, 0)
        assert torch.equal(model.sources.pixels[number], shown)


def test_a_second_push_changes_nothing():
    model = build()
    push_prototypes(model, read())
    before, records = model.prototypes.detach().clone(), model.sources.records
    moved = push_prototypes(model, read())
    assert torch.equal(model.prototypes.detach(), before)
    assert model.sources.records == records
    assert (moved == 0).all()


def test_a_pushed_prototype_is_at_distance_zero_when_measured_again():
    model = build(depth=128)
    push_prototypes(model, read())
    distances, labels = measure_distances(model, read())
    assert distances.shape == (13, 6)
    own = np.where(labels[:, None] == model.prototype_class.numpy(), distances, np.inf)
    assert own.min(axis=0).max() <= 1e-5
    check_push(distances, labels, model.prototype_class.numpy())
    with pytest.raises(TrainingError, match=r"prototype \d is at a squared distance of 1 from"):
        check_push(distances + 1, labels, model.prototype_class.numpy())


def test_of_equal_patches_the_first_is_taken():
    store = FakeStore("a", [0, 1] * 3, patch_px=64)
    store.pixels[2], store.pixels[4] = store.pixels[0], store.pixels[0]
    model = build()
    push_prototypes(model, read(of=[store], size=2))
    assert {one.row for one in model.sources.records[:3]} == {0}


def test_the_box_is_around_the_highest_5_per_cent_and_in_level_0_pixels():
    """The patch is cropped to its centre, 64 of 96 px, and one px is 2 x 4 of level 0."""
    model = build(preprocess={"crop": (64, 64)})
    store = FakeStore("s", [0, 1], patch_px=96)
    store.locate = lambda row: PatchOrigin("s", row, (1000, 2000), (2.0, 4.0))
    push_prototypes(model, read(of=[store]))
    assert model.sources.pixels.shape == (6, 64, 64, 3)
    assert np.array_equal(model.sources.pixels[0], store.pixels[0, 16:80, 16:80])
    with torch.no_grad():
        for number, source in enumerate(model.sources.records):
            image = next(read(of=[store])).x[source.row][None]
            maps = model.similarity_maps(image)[:, number : number + 1]
            large = torch.nn.functional.interpolate(maps, (64, 64), mode="bicubic")[0, 0].numpy()
            ys, xs = np.nonzero(large >= np.percentile(large, 95))
            x, y, width, height = source.box_px
            assert (x, y, x + width, y + height) == (
                xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)  # fmt: skip
            assert source.box_l0 == (
                1000 + 2 * (16 + x), 2000 + 4 * (16 + y), 2 * width, 4 * height)  # fmt: skip


def test_patches_that_cannot_be_read_are_no_prototypes_and_no_class_is_without(tmp_path):
    model = build()
    only_normal = [FakeStore("b", [0] * 3, patch_px=64)]
    with pytest.raises(TrainingError, match="no readable training image of a class"):
        push_prototypes(model, read(of=only_normal))


def test_a_push_reads_training_patches_as_they_are(tmp_path, monkeypatch):
    """Neither augmented nor drawn, in evaluation mode; broken ones are left out."""
    seen = []

    def watch(model, batches):
        assert not model.training
        seen.append(list(batches))
        return push_prototypes(model, seen[-1])

    monkeypatch.setattr(protopnet, "push_prototypes", watch)
    given = [FakeStore("a", [0, 1] * 5, patch_px=64, broken=[3], unreadable=[4]), stores()[1]]
    train_model(TINY, train=given, val=[FakeStore("c", [0, 1] * 3, patch_px=64)],
                patients=PATIENTS, out=tmp_path, device=CPU)  # fmt: skip
    found = torch.cat([b.x for b in seen[0]])
    expected = [given[0].pixels[[0, 1, 2, 5, 6, 7, 8, 9]], given[1].pixels]
    assert torch.equal(found, to_unit_range(torch.from_numpy(np.concatenate(expected)), CPU))
    origins = [b.locate(int(row)) for b in seen[0] for row in b.row]
    assert [o.row for o in origins] == [0, 1, 2, 5, 6, 7, 8, 9, 0, 1, 2]
    assert [o.source_id for o in origins] == ["a"] * 8 + ["b"] * 3


def test_so_many_patches_are_looked_at_half_of_each_class(tmp_path, monkeypatch):
    seen = []

    def watch(model, batches):
        seen.extend(batches)
        return push_prototypes(model, seen)

    monkeypatch.setattr(protopnet, "push_prototypes", watch)
    own = replace(TINY.protopnet, push_patches=6)
    train(tmp_path, replace(TINY, max_epochs=2, protopnet=own))
    assert sorted(np.concatenate([b.label for b in seen])) == [0, 0, 0, 1, 1, 1]


# ------------------------------------------------------------ stage 3 and the whole


def test_the_kept_model_has_pushed_prototypes_and_the_fitted_last_layer(tmp_path, monkeypatch):
    fits = []

    def watch(similarities, labels, classes, start, **how):
        assert how == {"l1": 1e-4, "tolerance": 1e-4, "max_steps": 50}
        fits.append(
            (similarities, labels, fit_last_layer(similarities, labels, classes, start, **how))
        )
        return fits[-1][2]

    monkeypatch.setattr(protopnet, "fit_last_layer", watch)
    summary = train(tmp_path)
    model, meta = load_checkpoint(summary.checkpoint)
    assert meta.epoch == summary.best.epoch in (2, 4)
    distances, labels = measure_distances(model, read())
    check_push(distances, labels, model.prototype_class.numpy())
    similarities, of_images, fit = fits[meta.epoch // 2 - 1]
    assert similarities.dtype == np.float64
    with torch.no_grad():
        again = torch.cat([model.similarities(b.x) for b in read()]).double().numpy()
    np.testing.assert_allclose(similarities, again, rtol=1e-5)  # in evaluation mode
    assert np.array_equal(of_images, labels)
    assert np.array_equal(model.last.weight.detach().numpy(), fit.weights.astype(np.float32))


def test_weights_are_kept_only_after_a_push_and_by_the_metric(tmp_path, monkeypatch):
    from wsi_pipeline.training import loop

    aucs = {1: 0.99, 2: 0.7, 3: 0.98, 4: 0.9, 5: 0.97, 6: 0.8}
    monkeypatch.setattr(
        loop._Training,
        "validate",
        lambda self, r: replace(r, val_loss=0.5, val_roc_auc=aucs[r.epoch]),
    )
    summary = train(tmp_path, replace(TINY, max_epochs=6))
    assert summary.best.epoch == 4
    found = json.loads((tmp_path / "prototypes.json").read_text())
    assert found["epoch"] == load_checkpoint(summary.checkpoint)[1].epoch == 4


def test_training_does_not_stop_before_the_first_push(tmp_path, monkeypatch):
    """Epoch 1 is the best by its loss; a patience of 1 would end in epoch 2."""
    from wsi_pipeline.training import loop

    monkeypatch.setattr(
        loop._Training,
        "validate",
        lambda self, r: replace(r, val_loss=0.5, val_roc_auc=0.9 - r.epoch / 100),
    )
    own = replace(TINY.protopnet, push_from=4)
    summary = train(tmp_path, replace(TINY, max_epochs=10, patience=2, protopnet=own))
    assert (summary.epochs, summary.best.epoch) == (6, 4)
    assert "has not improved for 2 epochs" in summary.stopped


def test_the_history_and_the_log_tell_of_push_and_last_layer(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path)
    notes = [row["note"] for row in rows_of(tmp_path / "history.csv")]
    assert notes[0] == notes[2] == ""
    for note in (notes[1], notes[3]):
        assert note.startswith("prototypes pushed by ")
        assert "stopped at its limit of 50 steps" in note  # colours separate the classes
        assert any(note in r.message and r.levelname == "WARNING" for r in caplog.records)


def test_where_prototypes_are_from_is_next_to_the_checkpoint(trained):
    out, summary = trained
    model, _ = load_checkpoint(summary.checkpoint)
    found = json.loads((out / "prototypes.json").read_text())
    assert (found["schema"], found["epoch"]) == ("wsi-pipeline/prototypes/1", summary.best.epoch)
    for number, (row, source) in enumerate(
        zip(found["prototypes"], model.sources.records, strict=True)
    ):
        assert (row["prototype"], row["before_pruning"]) == (number, number)
        assert row["class"] == number // 3
        assert (row["source_id"], row["row"]) == (source.source_id, source.row)
        assert tuple(row["box_l0"]) == source.box_l0
        assert row["box_l0"][0] == row["box_px"][0] + 64 * row["row"]
    assert [path.name for path in summary.files][-1] == "prototypes.json"
    assert all(path.is_file() for path in summary.files)


def test_pruning_drops_fits_again_and_lists(tmp_path, monkeypatch):
    choose = protopnet.choose_kept

    def drop_two(distances, labels, classes, **how):
        assert how == {"nearest": 6, "least": 3}
        kept, judged = choose(distances, labels, classes, **how)
        kept[[0, 4]] = False
        return kept, [replace(one, kept=bool(k)) for one, k in zip(judged, kept, strict=True)]

    monkeypatch.setattr(protopnet, "choose_kept", drop_two)
    config = replace(TINY, protopnet=replace(TINY.protopnet, prune=True))
    summary = train(tmp_path, config)
    model, meta = load_checkpoint(summary.checkpoint)
    assert model.prototype_class.tolist() == [0, 0, 1, 1]
    assert meta.options["prototypes_per_class"] == [2, 2]
    rows = list(csv.DictReader((tmp_path / "pruning.csv").read_text().splitlines()))
    assert [row["kept"] for row in rows] == ["0", "1", "1", "1", "0", "1"]
    found = json.loads((tmp_path / "prototypes.json").read_text())["prototypes"]
    assert [row["before_pruning"] for row in found] == [1, 2, 3, 5]
    assert [row["source_id"] for row in found] == [s.source_id for s in model.sources.records]
    assert {path.name for path in summary.files} >= {"pruning.csv", "prototypes.json"}
    # The figures are those of the smaller network.
    val = FakeStore("c", [0, 1] * 3, patch_px=64)
    with torch.no_grad():
        logits = model(to_unit_range(torch.from_numpy(val.pixels), CPU))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(val.label.astype(np.float32))
    )
    assert meta.metrics["val_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert summary.best.val_loss == meta.metrics["val_loss"]


# ------------------------------------------------------------ kills


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train(out, PRUNED)
    return contents(out)


PRUNED = replace(TINY, protopnet=replace(TINY.protopnet, prune=True))


@pytest.mark.parametrize("batches", [2, 6, 10], ids=["warm", "joint", "pushed"])
def test_a_training_killed_in_any_phase_is_resumed_to_the_same_bytes(
    tmp_path, undisturbed, batches
):
    with pytest.raises(Killed):
        train(tmp_path, PRUNED, on_progress=kill_after(batches))
    assert not (tmp_path / "checkpoint.safetensors").exists()
    train(tmp_path, PRUNED)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("step", "times"),
    [("push_prototypes", 2), ("fit_last_layer", 1), ("choose_kept", 1), ("write_json", 1)],
)
def test_a_training_killed_in_a_push_or_after_it_is_resumed_to_the_same_bytes(
    tmp_path, undisturbed, monkeypatch, step, times
):
    """The epoch is repeated from its beginning, so that no half of a push is left."""
    original, calls = getattr(protopnet, step), []

    def kill(*args, **options):
        calls.append(None)
        if len(calls) == times:
            raise Killed
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(protopnet, step, kill)
        with pytest.raises(Killed):
            train(tmp_path, PRUNED)
    train(tmp_path, PRUNED)
    assert contents(tmp_path) == undisturbed


def test_a_training_with_momentum_is_resumed_to_the_same_bytes(tmp_path):
    config = replace(TINY, optimizer="sgd", lr=1e-5)
    train(tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config, on_progress=kill_after(11))
    train(tmp_path / "killed", config)
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_in_bf16_prototypes_are_still_patches_to_the_bit(tmp_path):
    summary = train(tmp_path, replace(TINY, precision="bf16", max_epochs=2))
    model, _ = load_checkpoint(summary.checkpoint)
    distances, labels = measure_distances(model, read())
    check_push(distances, labels, model.prototype_class.numpy())


# ------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_epochs": 9}, r"max_epochs=9 ends before the first push \(protopnet.push_from=10\)"),
        ({"max_epochs": 25}, "is in epoch 20; set max_epochs to 20 or 30"),
        ({"lr_halve_after": 3}, "lr_halve_after=3 has no effect"),
        ({"processes": 2}, "processes=2, but a protopnet is trained by one process"),
        ({"protopnet": ProtoPNetConfig(prune=True, prune_least=7)}, "prune_least=7 is more than"),
    ],
)
def test_settings_without_effect_are_refused(changes, message):
    with pytest.raises(ConfigError, match="protopnet: .*" + message):
        choose_course(TINY).check(replace(train_config("protopnet"), **changes))


def test_its_settings_are_refused_for_other_models(tmp_path):
    config = replace(train_config("vgg16"), protopnet=ProtoPNetConfig())
    assert choose_course(config) is Course
    with pytest.raises(ConfigError, match="vgg16: the settings under protopnet are of the model"):
        train(tmp_path, config)


def test_prototypes_of_one_class_cannot_be_trained(tmp_path):
    model = ModelConfig("protopnet", OPTIONS | {"prototypes_per_class": [2, 0]})
    with pytest.raises(ModelError, match="needs prototypes of both classes"):
        train(tmp_path, replace(TINY, model=model))


def test_a_crop_is_trained_and_its_centre_pushed(tmp_path):
    model = ModelConfig("protopnet", OPTIONS, preprocess=PreprocessConfig(crop=(32, 48)))
    summary = train(tmp_path, replace(TINY, model=model, max_epochs=2))
    found, _ = load_checkpoint(summary.checkpoint)
    assert found.sources.pixels.shape == (6, 32, 48, 3)
