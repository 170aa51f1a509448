"""One YAML file, checked once: keys, values, paths, recipes."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from wsi_pipeline.config.reading import as_plain, digest_settings, read_config
from wsi_pipeline.config.settings import (
    AugmentConfig,
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
    fill_in_sampling,
    result_settings,
)
from wsi_pipeline.errors import ConfigError

ROOT = Path(__file__).parents[3]


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_that_ships_is_valid(path):
    assert read_config(path).stages


def test_anchors_and_merges_are_read(tmp_path):
    text = "train:\n  a: &a {lr: 0.5, model: {name: cam}}\n  b: {<<: *a, lr: 0.25}\n"
    config = read_config(write(tmp_path, text))
    assert (config.train["a"].lr, config.train["b"].lr) == (0.5, 0.25)
    assert config.train["b"].model.name == "cam"


@pytest.mark.parametrize(
    "setting", ["tile.patch_px={a: 1, a: 2}", 'input="a\\0b"', "seed=" + "[" * 100_000]
)
def test_the_same_holds_for_a_setting_of_the_command_line(setting):
    with pytest.raises(ConfigError, match="is not a YAML value"):
        read_config(None, [setting])


def test_paths_are_relative_to_the_config(tmp_path):
    text = "input: data/m.csv\nout: ../run\ntrain: {vgg16: {model: {weights: vgg.pth}}}\n"
    config = read_config(write(tmp_path, text))
    assert config.input == tmp_path / "data/m.csv"
    assert config.out == tmp_path / "../run"
    assert config.train["vgg16"].model.weights == tmp_path / "vgg.pth"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tile: {patch_pxx: 3}",
            r"unknown key 'patch_pxx' under 'tile'; did you mean 'patch_px'\?",
        ),
        ("tyle: {}", r"unknown key 'tyle'; did you mean 'tile'\?"),
        ("tile: {tissue: {min_fracton: 0.1}}", r"did you mean 'min_fraction'\?"),
        ("train: {vgg16: {learning_rate: 1}}", "unknown key 'learning_rate' under 'train.vgg16'"),
        ("train: {vgg16: {momentun: 1}}", r"did you mean 'momentum'\?"),
        ("tile: {patch_px: wide}", "tile.patch_px: .*got 'wide'"),
        ("stages: [tile, fly]", "stages.1"),
        ("- a\n- b", "a config is a mapping"),
        ("a: [", "not a YAML file"),
        ("tile: !!python/object:os.system {}", "not a YAML file"),
        (
            "tile: {patch_px: 64}\nseed: 1\ntile: {store: coords}",
            "duplicate key 'tile' on lines 1 and 3; remove one of them",
        ),
        ("tile:\n  patch_px: 64\n  'patch_px': 32", "duplicate key 'patch_px' on lines 2 and 3"),
        ("train: {on: {}, yes: {}}", "duplicate key 'yes' on lines 1 and 1"),
        ("tile: " + "[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("[" * 100_000, "nested more than 50 deep"),
        ("a: &a [*a]", "more than 100000 values with aliases expanded, or contains itself"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "more than 100000 values with aliases expanded, or contains itself",
        ),
        ('input: "slides\\0.csv"', "input: .* contains a NUL character"),
        ('train: {"a\\0b": {}}', "a key under train: .* contains a NUL character"),
        ("a\0b: 1", "not a YAML file"),
    ],
)
def test_a_wrong_config_names_file_key_and_remedy(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "tile.tissue.mpp",
        "predict.tolerance",
        "evaluate.threshold",
        "evaluate.rates",
        "export.detection_radius_um",
        "train.vgg16.lr",
        "train.vgg16.augment.zoom",
        "train.patchnet.model.options.m",
        "cluster.cores",
    ],
)
@pytest.mark.parametrize("value", [".nan", ".inf", "[1, .inf]"])
def test_a_number_that_is_none_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        read_config(None, [f"{key}={value}"])


@pytest.mark.parametrize(
    "key", ["tile.stride_px", "predict.tolerance", "seed", "images.channels", "splits.folds"]
)
def test_yes_is_not_taken_for_the_number_one(key):
    with pytest.raises(ConfigError, match=f"{key}: input should be a number, got true"):
        read_config(None, [f"{key}=true"])
    assert read_config(None, ["tile.patch_px=1", "train.vgg16.model.options.x=true"])


@pytest.mark.parametrize(
    "setting",
    [
        "seed=-1",
        "images.size=[0, 5]",
        "images.mpp=-3",
        "train.vgg16.rho=1.5",
        "train.vgg16.momentum=-1",
        "train.vgg16.eps=0",
        "train.vgg16.batch_size=0",
        "train.vgg16.stop_at_train_accuracy=0",
        "train.vgg16.augment.zoom=0.9",
        "train.vgg16.augment.contrast=-0.1",
        "train.vgg16.augment.hue=2",
        "train.vgg16.model.preprocess.gamma=0",
        "predict.batch_size=0",
        "predict.readers=-1",
        "predict.tolerance=-1",
        "heatmap.thumbnail_px=0",
        "heatmap.dense_step_px=-4",
        "heatmap.maps_per_class=-1",
        "evaluate.threshold=2",
        "evaluate.bootstrap=-1",
        "export.detection_threshold=5",
        "export.detection_radius_um=0",
        "export.thresholds=[1.5]",
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_its_key(setting):
    key, _, value = setting.partition("=")
    with pytest.raises(
        ConfigError, match=rf"{key}(\.0)?: input should be (gr|l)\w+ than"
    ) as caught:
        read_config(None, [setting])
    assert str(caught.value).endswith(value.strip("[]").partition(",")[0])


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_set_overrides_the_file_long_and_short(tmp_path):
    path = write(tmp_path, "tile: {patch_px: 512}\n")
    config = read_config(path, ["tile.patch_px=128", "stride_px=64", "seed=3"], section="tile")
    assert (config.tile.patch_px, config.tile.stride_px, config.seed) == (128, 64, 3)


def test_a_short_training_key_is_each_chosen_models():
    config = read_config(None, ["lr=1e-3"], section="train", models=["vgg16", "patchnet"])
    assert [c.lr for c in config.train.values()] == [1e-3, 1e-3]


def test_a_short_training_key_leaves_the_models_alone_that_are_not_chosen(tmp_path):
    path = write(tmp_path, "train: {vgg16: {lr: 0.1}, patchnet: {lr: 0.2}}\n")
    config = read_config(path, ["lr=0.3"], section="train", models=["vgg16"])
    assert (config.train["vgg16"].lr, config.train["patchnet"].lr) == (0.3, 0.2)


# ------------------------------------------------------------ recorded settings


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_a_config_comes_back_from_plain_values(path):
    config = read_config(path)
    for section in ("predict", "heatmap", "evaluate", "export"):
        again = read_config(None, recorded=as_plain(config), section=section)
        assert as_plain(again) == as_plain(config)


def test_set_overrides_recorded_settings_and_a_file_replaces_them(tmp_path):
    recorded = as_plain(read_config(None, ["heatmap.overlap=max", "evaluate.top_k=3"]))
    config = read_config(None, ["overlap=centre"], section="heatmap", recorded=recorded)
    assert (config.heatmap.overlap, config.evaluate.top_k) == ("centre", 3)
    path = write(tmp_path, "evaluate: {top_k: 5}\n")
    config = read_config(path, section="heatmap", recorded=recorded)
    assert (config.heatmap.overlap, config.evaluate.top_k) == ("mean", 5)


def test_weights_whose_folder_was_not_kept_are_asked_for_by_training():
    key = "train.vgg16.model.weights"
    recorded = as_plain(read_config(None, [f"{key}=/far/vgg.pth"]))
    for models in ((), ("vgg16",)):
        with pytest.raises(ConfigError, match=rf"{key} was 'vgg\.pth'.*--set {key}=FOLDER/vgg"):
            read_config(None, section="train", models=models, recorded=recorded)
    for value in ("null", "vgg.pth"):
        assert read_config(None, [f"{key}={value}"], section="train", recorded=recorded)
    assert read_config(None, section="train", models=["patchnet"], recorded=recorded)
    assert read_config(None, section="heatmap", recorded=recorded)


def test_unknown_settings_of_an_older_version_are_named():
    recorded = {"heatmap": {"blur": 3}}
    with pytest.raises(ConfigError, match=r"run\.json.*--config FILE.*unknown key 'blur'"):
        read_config(None, section="heatmap", recorded=recorded)


def test_a_wrong_setting_is_not_blamed_on_the_recorded_ones():
    recorded = as_plain(read_config(None))
    with pytest.raises(ConfigError, match="got 'median'") as caught:
        read_config(None, ["overlap=median"], section="heatmap", recorded=recorded)
    assert "run.json" not in str(caught.value)


@pytest.mark.parametrize("setting", ["patch_px", "=3", "tile.patch_px=["])
def test_a_setting_without_sense_is_refused(setting):
    with pytest.raises(ConfigError, match="--set"):
        read_config(None, [setting], section="tile")


def test_a_model_starts_from_its_papers_recipe_and_the_config_lies_over_it(tmp_path):
    text = "train:\n  vgg16:\n  small: {model: {name: patchnet}, lr: 0.01, augment: {hue: 0.1}}\n"
    config = read_config(write(tmp_path, text))
    vgg, small = config.train["vgg16"], config.train["small"]
    assert (vgg.model.name, vgg.optimizer, vgg.rho, vgg.momentum) == ("vgg16", "rmsprop", 0.9, 0.9)
    assert (vgg.lr, vgg.lr_halve_after, vgg.patience, vgg.monitor) == (5e-5, 3, 5, "roc_auc")
    assert (small.optimizer, small.lr, small.batch_size) == ("adam", 0.01, 4)
    assert (small.augment.hue, small.augment.brightness) == (0.1, 0.0)


def test_precision_patchnet_starts_from_paper_1_and_the_others_from_paper_2(tmp_path):
    """Paper 1, section 4: 5e-5, batches of 8 or 16, patience 2000; it is of paper 1 alone."""
    text = "train:\n  precision_patchnet:\n  patchnet:\n  cam:\n  vgg11:\n"
    train = read_config(write(tmp_path, text)).train
    found = {name: (t.lr, t.batch_size, t.patience) for name, t in train.items()}
    assert found == {
        "precision_patchnet": (5e-5, 16, 2000),
        "patchnet": (1e-4, 4, 1000),
        "cam": (1e-4, 64, 1000),
        "vgg11": (1e-4, 64, 1000),
    }
    assert all(t.max_epochs > t.patience and t.monitor == "loss" for t in train.values())


def test_a_setting_that_came_later_leaves_fingerprints_as_they_were():
    """Checkpoints of earlier versions are kept where training does what it did."""
    vgg = TrainConfig(model=ModelConfig(name="vgg16"))
    for config in (
        vgg,
        replace(vgg, sampling="balanced"),
        replace(vgg, readers=5),
        replace(vgg, log="tensorboard"),
    ):
        assert digest_settings(result_settings(config)) == "3190b992ab6f1acd"
    stained = replace(vgg.model, preprocess=PreprocessConfig(stain="macenko"))
    for config in (
        replace(vgg, augment=AugmentConfig(stain=0.05)),
        replace(vgg, model=stained),
    ):
        assert digest_settings(result_settings(config)) != "3190b992ab6f1acd"
    shuffled = [replace(vgg, sampling="shuffle", steps_per_epoch=n) for n in (1000, 5)]
    one, other = (digest_settings(result_settings(config)) for config in shuffled)
    assert one == other != "3190b992ab6f1acd"
    fewer = replace(vgg, steps_per_epoch=5)
    assert digest_settings(result_settings(fewer)) != "3190b992ab6f1acd"


@pytest.mark.parametrize(
    ("name", "images", "sampling"),
    [
        *((name, True, "shuffle") for name in ("patchnet", "precision_patchnet", "cam", "vgg11")),
        *((name, True, "balanced") for name in ("vgg16", "vgg19", "vgg11_pooled")),
        ("patchnet", False, "balanced"),
    ],
)
def test_papers_with_epochs_over_all_images_are_trained_so(name, images, sampling):
    config = TrainConfig(model=ModelConfig(name=name))
    assert fill_in_sampling(config, images=images).sampling == sampling
    for recorded in ("balanced", "shuffle"):
        assert (
            fill_in_sampling(replace(config, sampling=recorded), images=images).sampling == recorded
        )


def test_no_folder_of_this_machine_is_kept(tmp_path):
    config = read_config(write(tmp_path, "input: m.csv\nout: run\n"))
    assert str(tmp_path) not in yaml.safe_dump(as_plain(config))


def test_the_same_settings_have_the_same_digest():
    one, other = read_config(None, ["tile.patch_px=256"]), read_config(None, [])
    assert digest_settings(one.tile) == digest_settings(
        read_config(None, ["tile.patch_px=256"]).tile
    )
    assert digest_settings(one.tile) != digest_settings(other.tile)


@pytest.mark.parametrize("name", ["manifest.csv", "slides"])
def test_a_manifest_in_place_of_a_config_is_refused_with_advice(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(ConfigError, match=f"{name} --config CONFIG$"):
        read_config(path)
