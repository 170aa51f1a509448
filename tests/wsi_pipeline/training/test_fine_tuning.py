"""Fine-tuning: frozen blocks, rates by block, warm-up, the head first, resumed exactly."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.tiny_training import CPU, Killed, contents, kill_after
from tests.helpers.tiny_training import train_on_two_slides as train
from wsi_pipeline.config.reading import train_config
from wsi_pipeline.config.settings import (
    AugmentConfig,
    ModelConfig,
    TrainConfig,
    result_settings,
)
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.training.courses import choose_course
from wsi_pipeline.training.fine_tuning import FineTuningCourse, can_recur
from wsi_pipeline.training.frozen_maps import FrozenMaps
from wsi_pipeline.training.history import EpochRecord
from wsi_pipeline.training.recipe import build_classifier

VGG = TrainConfig(
    model=ModelConfig("vgg11_pooled", {"width": 0.0625}),
    batch_size=4,
    steps_per_epoch=3,
    max_epochs=3,
)
FLIPS = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0)
LAST_BLOCK = "features.16.", "features.18."


def course_of(config):
    torch.manual_seed(0)
    return choose_course(config)(config, build_classifier(config, CPU))


def first_weights(config):
    torch.manual_seed(config.seed or 0)
    return build_classifier(config, CPU).state_dict()


def rates(course, step, steps_per_epoch=10):
    course.begin_step(step, steps_per_epoch)
    return [group["lr"] for group in course.optimizer.param_groups]


# ------------------------------------------------------------------ frozen blocks


@pytest.mark.parametrize("name", ["vgg16", "vgg11", "cam", "protopnet", "resnet18"])
def test_blocks_in_parts_give_the_logits_of_the_whole(name):
    model = build_model(name, width=0.125).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for n in range(model.n_blocks + 1):
            assert torch.equal(model.decode(model.encode(x, n), n), model(x))
    counts = [sum(p.numel() for p in block.parameters()) for block in model.blocks()]
    assert len(counts) == model.n_blocks == 5
    top = ("output.", "classifier.", "add_on.", "last.", "prototypes")
    rest = [p.numel() for name, p in model.named_parameters() if not name.startswith(top)]
    assert sum(counts) == sum(rest)


@pytest.mark.parametrize(
    ("freeze", "trained"), [(4, (*LAST_BLOCK, "output.")), ("all", ("output.",)), (5, ("output.",))]
)
def test_frozen_parameters_keep_their_bits_and_all_others_change(
    fake_store, tmp_path, monkeypatch, freeze, trained
):
    config = replace(VGG, freeze=freeze, lr=1e-3, monitor="none")
    before = {}
    load = FineTuningCourse.__init__

    def note(self, config, model):
        before.update({name: value.clone() for name, value in model.state_dict().items()})
        load(self, config, model)

    monkeypatch.setattr(FineTuningCourse, "__init__", note)
    summary = train(fake_store, tmp_path, config)
    after = load_checkpoint(summary.checkpoint)[0].state_dict()

    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(trained)}


def test_running_statistics_of_frozen_blocks_stay(fake_store, tmp_path):
    """A frozen batch normalisation that goes on averaging would change the frozen maps."""
    model = ModelConfig("resnet18", {"width": 0.125})
    config = replace(VGG, model=model, freeze=2, max_epochs=1, augment=FLIPS)
    trained = load_checkpoint(train(fake_store, tmp_path, config).checkpoint)[0]
    assert int(trained.bn1.num_batches_tracked) == 0
    assert int(trained.layer1[0].bn1.num_batches_tracked) == 0
    assert torch.equal(trained.bn1.running_mean, torch.zeros_like(trained.bn1.running_mean))
    assert int(trained.layer2[0].bn1.num_batches_tracked) == 3


@pytest.mark.parametrize("freeze", [2, "all"])
def test_kept_maps_change_no_weight(fake_store, tmp_path, monkeypatch, freeze):
    """Whether an image's maps are kept or computed again is a matter of memory alone."""
    config = replace(VGG, freeze=freeze, augment=FLIPS)
    train(fake_store, tmp_path / "kept", config)
    init = FrozenMaps.__init__
    monkeypatch.setattr(FrozenMaps, "__init__", lambda *a: init(*a, most_bytes=0))
    train(fake_store, tmp_path / "computed", config)

    assert contents(tmp_path / "kept") == contents(tmp_path / "computed")


def test_images_whose_colours_change_do_not_recur():
    """Random stains were overlooked: maps were kept that never came again."""
    assert can_recur(replace(VGG, augment=FLIPS))
    for name in ("brightness", "contrast", "saturation", "hue", "stain"):
        assert not can_recur(replace(VGG, augment=replace(FLIPS, **{name: 0.1})))
    assert not can_recur(replace(VGG, augment=replace(FLIPS, zoom=1.2)))


def test_each_flip_of_an_image_is_encoded_once():
    model = build_model("vgg11_pooled", width=0.0625).eval()
    calls = []
    encode = model.encode
    model.encode = lambda x, n: calls.append(len(x)) or encode(x, n)
    maps = FrozenMaps(model, 5)
    x = torch.rand(3, 3, 32, 32)
    first = maps.logits(x, keep=True)
    again = maps.logits(x.to(memory_format=torch.channels_last)[[2, 0, 1]], keep=True)

    assert calls == [1, 1, 1]
    torch.testing.assert_close(again, first[[2, 0, 1]])
    torch.testing.assert_close(first, model(x))
    maps.logits(x.flip(3), keep=True)
    assert calls == [1] * 6
    assert first.requires_grad


def test_an_image_of_which_a_colour_changes_is_not_kept(fake_store, tmp_path, monkeypatch):
    asked = []
    logits = FrozenMaps.logits

    def note(self, x, *, keep):
        asked.append((torch.is_grad_enabled(), keep))
        return logits(self, x, keep=keep)

    monkeypatch.setattr(FrozenMaps, "logits", note)
    train(fake_store, tmp_path, replace(VGG, freeze="all", max_epochs=1))
    assert set(asked) == {(True, False), (False, True)}  # training; validation


# ------------------------------------------------------------------ rates


def test_rates_fall_from_the_head_to_the_input_by_the_decay():
    course = course_of(replace(VGG, lr=8e-5, head_lr=1e-3, layer_decay=0.5, freeze=1))
    assert rates(course, 0) == [1e-3, 8e-5, 4e-5, 2e-5, 1e-5]
    groups = course.optimizer.param_groups
    trained = [{id(p) for p in group["params"]} for group in groups]
    blocks = course.model.blocks()
    assert trained[0] == {id(p) for p in course.model.output.parameters()}
    assert trained[1] == {id(p) for p in blocks[4].parameters()}
    assert trained[4] == {id(p) for p in blocks[1].parameters()}


def test_rates_rise_linearly_to_their_value_and_stay():
    course = course_of(replace(VGG, lr=1e-3, head_lr=2e-3, warmup_steps=3))
    found = [rates(course, step)[:2] for step in range(6)]
    shares = [0.25, 0.5, 0.75, 1, 1, 1]
    assert found == [pytest.approx([2e-3 * share, 1e-3 * share]) for share in shares]


def test_moments_are_accumulated_before_any_weight_changes(fake_store, tmp_path):
    config = replace(VGG, moment_steps=2, warmup_steps=1, lr=0.125)
    course = course_of(config)
    assert [rates(course, step)[0] for step in range(5)] == [0, 0, 0.0625, 0.125, 0.125]
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0.0, 1, 0, 1])
    before = [p.detach().clone() for p in course.model.parameters()]
    for step in range(2):
        course.begin_step(step, 10)
        course.optimizer.zero_grad()
        course.loss(x, y).backward()
        course.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, course.model.parameters(), strict=True))
    state = course.optimizer.state[course.model.output.weight]
    g = course.model.output.weight.grad
    torch.testing.assert_close(state["square_avg"], 0.19 * g**2)  # 0.1 + 0.9 * 0.1, same gradient


def test_the_head_is_trained_alone_before_the_blocks_which_warm_up_of_their_own():
    course = course_of(replace(VGG, lr=1e-3, head_epochs=1, warmup_steps=1, moment_steps=1))
    blocks = torch.nn.ModuleList(course.model.blocks())
    assert not any(p.requires_grad for p in blocks.parameters())
    assert all(p.requires_grad for p in course.model.output.parameters())
    assert [rates(course, step, 10)[0] for step in range(4)] == [0, 5e-4, 1e-3, 1e-3]
    course.begin(2)
    assert all(p.requires_grad for p in course.model.parameters())
    found = [rates(course, step, 10)[:2] for step in range(10, 14)]
    assert found == [[1e-3, 0], [1e-3, 5e-4], [1e-3, 1e-3], [1e-3, 1e-3]]


def test_a_plateau_halves_every_rate_also_while_they_warm_up():
    course = course_of(replace(VGG, lr=8e-5, head_lr=1e-3, warmup_steps=9, lr_halve_after=1))
    for epoch, val_loss in enumerate((0.5, 0.6), start=1):
        course.begin(epoch)
        course.begin_step(epoch, 10)
        course.adapt(record(epoch, val_loss))
    assert rates(course, 100)[:2] == [5e-4, 4e-5]


def record(epoch, val_loss):
    return EpochRecord(epoch, 0.1, 0.7, val_loss, 0.5)


# ------------------------------------------------------------------ resumed, recorded


@pytest.mark.parametrize(
    ("batches", "settings"),
    [
        (5, {"freeze": 3, "warmup_steps": 4, "augment": FLIPS}),
        (2, {"freeze": "all", "head_lr": 1e-3}),
        (5, {"head_epochs": 1, "layer_decay": 0.5, "moment_steps": 2, "lr_halve_after": 1}),
    ],
    ids=["frozen", "probe", "head first"],
)
def test_a_fine_tuning_that_was_killed_comes_out_the_same(fake_store, tmp_path, batches, settings):
    config = replace(VGG, **settings)
    train(fake_store, tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        train(fake_store, tmp_path / "killed", config, on_progress=kill_after(batches))
    train(fake_store, tmp_path / "killed", config)

    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_the_defaults_are_the_recipe_of_before_and_each_setting_is_part_of_the_fingerprint():
    settings = {
        "freeze": "all",
        "head_epochs": 1,
        "head_lr": 1e-3,
        "layer_decay": 0.5,
        "warmup_steps": 3,
        "moment_steps": 3,
    }
    assert settings.keys().isdisjoint(result_settings(VGG))
    for name, value in settings.items():
        assert result_settings(replace(VGG, **{name: value})) == result_settings(VGG) | {
            name: value
        }


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": 6}, "freeze must be at most 5"),
        ({"freeze": "all", "layer_decay": 0.5}, "layer_decay: no effect"),
        ({"freeze": 5, "head_epochs": 1}, "head_epochs: no effect"),
        ({"head_epochs": 3}, "leaves no epoch for the blocks"),
        ({"head_epochs": 1, "processes": 2}, "head_epochs needs processes: 1"),
        ({"moment_steps": 3, "optimizer": "sgd"}, "sgd has no second moments"),
        ({"freeze": 1, "model": ModelConfig("patchnet")}, "freeze: the model has no blocks.*vgg16"),
        ({"head_lr": 0.1, "model": ModelConfig("patchnet")}, "head_lr: the model has no blocks"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    config = replace(VGG, **settings)
    with pytest.raises(ConfigError, match=message):
        choose_course(config).check(config)


def test_a_protopnet_refuses_them():
    config = train_config("protopnet", freeze=2)
    with pytest.raises(ConfigError, match="freeze: no effect on a protopnet"):
        choose_course(config).check(config)


def test_warm_up_needs_no_blocks():
    model = ModelConfig("patchnet", {"m": 5, "stride": 5, "filters": 4, "depth": 1})
    config = replace(VGG, model=model, warmup_steps=2)
    assert rates(course_of(config), 0) == [pytest.approx(5e-5 / 3)]


@pytest.mark.parametrize("value", [0, -1, "none", 1.5])
def test_freeze_is_a_number_of_blocks_or_all(value):
    with pytest.raises(ConfigError, match="freeze"):
        train_config("vgg16", freeze=value)
