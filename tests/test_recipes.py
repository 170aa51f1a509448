"""configs/*.yaml: each is read, and agrees with its paper."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

from wsi_pipeline.config.reading import read_config, train_config
from wsi_pipeline.config.settings import (
    FINE_TUNING,
    AugmentConfig,
    ImagesConfig,
    ModelConfig,
    PreprocessConfig,
    ProtoPNetConfig,
    TrainConfig,
)
from wsi_pipeline.models import MODELS
from wsi_pipeline.training.courses import choose_course

CONFIGS = Path(__file__).parents[1] / "configs"
PUBLISHED = [
    "mmci_prostate",
    *sorted(p.stem for kind in ("patchnet", "protopnet") for p in CONFIGS.glob(f"{kind}_*.yaml")),
]


def recipe(name, model):
    config = read_config(CONFIGS / f"{name}.yaml")
    return config, config.train[model]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_is_read(path):
    assert read_config(path).train


def keys_of(kind):
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_leaves_no_key_of_its_training_unsaid(name):
    """A default that changes later must not change a paper's experiment."""
    message = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert {"input", "out", "seed", "stages", "train"} <= set(message)
    if "images" in message:
        assert set(message["images"]) == keys_of(ImagesConfig)
    for train in message["train"].values():
        unused = {"rho", "momentum"} if train["optimizer"] == "adam" else set()
        unused |= {"steps_per_epoch"} if train["sampling"] == "shuffle" else set()
        unused |= {"protopnet"} if train["model"]["name"] != "protopnet" else set()
        unused |= {*FINE_TUNING, "hard_share"} - set(train)  # without effect where not set
        assert set(train) == keys_of(TrainConfig) - {"seed", "log"} - unused  # the run's
        assert set(train["augment"]) == keys_of(AugmentConfig)
        if "protopnet" in train:
            assert set(train["protopnet"]) == keys_of(ProtoPNetConfig)
        model = train["model"]
        assert set(model) == keys_of(ModelConfig)
        assert set(model["preprocess"]) == keys_of(PreprocessConfig)
        assert set(model["options"]) == set(inspect.signature(MODELS[model["name"]]).parameters)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_says_where_each_value_is_from(name):
    for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
        key, _, value = line.strip().partition(":")
        own = key.startswith("#") or key in ("", "input", "out", "stages", "<<")
        opens_a_block = re.fullmatch(r"( [&*]\w+)?", value) is not None
        assert own or opens_a_block or "#" in value, line


@pytest.mark.parametrize(
    ("name", "model", "size", "m", "stride", "lr", "batches", "patience"),
    [
        ("patchnet_dtd", "patchnet", (300, 300), 15, 3, 5e-5, (8, 16), 2000),
        ("patchnet_isic2016", "precision_patchnet_15", (128, 170), 15, 5, 5e-5, (8, 16), 2000),
        ("patchnet_isic2016", "precision_patchnet_31", (128, 170), 31, 10, 5e-5, (8, 16), 2000),
        ("patchnet_isic2017", "patchnet_21", (192, 256), 21, 5, 1e-4, (4,), 1000),
        ("patchnet_nuclei", "patchnet_11", (128, 128), 11, 3, 1e-4, (4,), 1000),
        ("patchnet_nuclei", "patchnet_17", (128, 128), 17, 5, 1e-4, (4,), 1000),
        ("patchnet_nuclei", "patchnet_31", (128, 128), 31, 10, 1e-4, (4,), 1000),
        ("patchnet_nuclei", "patchnet_17_p1", (128, 128), 17, 5, 5e-5, (8, 16), 2000),
        ("patchnet_mcf10a", "patchnet_11", (128, 128), 11, 3, 1e-4, (4,), 1000),
        ("patchnet_mcf10a", "patchnet_17", (128, 128), 17, 5, 1e-4, (4,), 1000),
        ("patchnet_mcf10a", "patchnet_31", (128, 128), 31, 10, 1e-4, (4,), 1000),
        ("patchnet_cenpa", "patchnet_11", (128, 128), 11, 3, 1e-4, (4,), 1000),
        ("patchnet_dtd_p2", "patchnet_31", (224, 224), 31, 10, 1e-4, (4,), 1000),
    ],
)
def test_patchnet_recipes_have_the_papers_numbers(
    name, model, size, m, stride, lr, batches, patience
):
    config, train = recipe(name, model)
    options = train.model.options
    assert tuple(config.images.size) == size
    assert (options["m"], options["stride"], options["grid"]) == (m, stride, "ceil")
    assert (options["filters"], options["depth"]) == (64, 7)
    assert (train.optimizer, train.lr, train.monitor) == ("adam", lr, "loss")
    assert train.batch_size in batches
    assert train.patience == patience
    assert train.max_epochs > patience


@pytest.mark.parametrize(
    ("name", "model", "size"),
    [
        ("patchnet_isic2017", "cam", (192, 256)),
        ("patchnet_isic2017_vgg11", "vgg11", (224, 224)),
        ("patchnet_nuclei", "cam", (128, 128)),
        ("patchnet_mcf10a", "cam", (128, 128)),
        ("patchnet_cenpa", "cam", (128, 128)),
        ("patchnet_nuclei_vgg11", "vgg11", (224, 224)),
        ("patchnet_mcf10a_vgg11", "vgg11", (224, 224)),
        ("patchnet_cenpa_vgg11", "vgg11", (224, 224)),
        ("patchnet_dtd_p2", "cam", (224, 224)),
        ("patchnet_dtd_p2", "vgg11", (224, 224)),
    ],
)
def test_networks_of_whole_images_are_trained_as_paper_2_says(name, model, size):
    config, train = recipe(name, model)
    assert tuple(config.images.size) == size
    assert (train.optimizer, train.lr, train.batch_size) == ("adam", 1e-4, 64)
    assert (train.monitor, train.patience) == ("loss", 1000)
    assert train.stop_at_train_accuracy == 1.0
    assert train.model.weights is None


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("patchnet_")])
def test_epochs_of_the_patchnet_papers_pass_over_all_images(name):
    for train in read_config(CONFIGS / f"{name}.yaml").train.values():
        assert train.sampling == ("balanced" if name == "patchnet_convergence" else "shuffle")


def test_what_single_papers_add():
    config, train = recipe("patchnet_dtd", "patchnet")
    assert tuple(train.model.preprocess.crop) == (128, 128)
    assert (
        recipe("patchnet_isic2016", "precision_patchnet_15")[0].images.equal_classes == "upsample"
    )
    config, train = recipe("patchnet_isic2017", "patchnet_21")
    assert config.images.equal_classes
    assert train.model.preprocess.gamma == 2.2
    assert train.model.preprocess.colour_constancy
    assert (train.augment.rotate_180, train.augment.zoom) == (True, 1.2)
    assert recipe("patchnet_isic2017", "cam")[1].batch_size == 64
    config, train = recipe("patchnet_nuclei", "patchnet_17")
    assert (config.images.channels, config.images.fit) == (1, "pad")
    assert train.model.options["region"] == 64
    assert recipe("patchnet_nuclei", "patchnet_17_p1")[1].model.options["region"] is None
    assert recipe("patchnet_mcf10a", "patchnet_17")[1].model.options["region"] is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("patchnet_isic2017", "val"),
        ("patchnet_isic2017_vgg11", "val"),
        ("patchnet_cenpa", "test"),
        ("patchnet_cenpa_vgg11", "test"),
    ],
)
def test_all_maps_of_the_split_with_masks_are_made(name, split):
    """Paper 2, tables 2 and 7."""
    config = read_config(CONFIGS / f"{name}.yaml")
    assert config.evaluate.split == split
    assert config.heatmap.maps_per_class is None
    assert config.images.table.name == "table.csv"
    assert {"heatmap", "evaluate"} <= set(config.stages)


def test_networks_of_one_table_are_trained_alike():
    """Table 7 is of the networks of table 5; each VGG-11 differs from CAM in size alone."""
    for model in ("patchnet_11", "cam"):
        assert recipe("patchnet_cenpa", model)[1] == recipe("patchnet_mcf10a", model)[1]
    for name in ("isic2017", "mcf10a", "nuclei", "cenpa"):
        vgg, cam = (
            recipe(*of)[1]
            for of in ((f"patchnet_{name}_vgg11", "vgg11"), (f"patchnet_{name}", "cam"))
        )
        assert dataclasses.replace(vgg, model=cam.model) == cam
        assert vgg.model.preprocess == cam.model.preprocess


@pytest.mark.parametrize("name", ["protopnet_nuclei", "protopnet_camelyon16_patches"])
def test_protopnet_recipes_have_the_papers_numbers(name):
    config, train = recipe(name, "protopnet")
    assert train.model.options == {
        "base": "vgg16",
        "width": 1.0,
        "prototypes_per_class": 10,
        "depth": 128,
    }
    assert train.model.weights.name == "vgg16.pth"
    assert (train.optimizer, train.lr, train.lr_halve_after) == ("adam", 1e-4, None)
    own = dataclasses.replace(train.protopnet, prune=False, solver_steps=20_000)
    assert own == ProtoPNetConfig()
    choose_course(train).check(train)
    if name == "protopnet_nuclei":
        assert (tuple(config.images.size), train.batch_size) == ((224, 224), 80)


def test_the_defaults_of_protopnet_are_the_papers():
    own = ProtoPNetConfig()
    assert (own.warm_epochs, own.lr_add_on, own.lr_prototypes) == (5, 3e-3, 3e-3)
    assert (own.weight_decay, own.lr_step, own.lr_factor) == (1e-3, 5, 0.1)
    assert (own.cluster, own.separation, own.l1) == (0.8, 0.08, 1e-4)
    assert (own.push_from, own.push_every, own.push_patches) == (10, 10, None)
    assert (own.prune, own.prune_nearest, own.prune_least) == (False, 6, 3)
    recipe = train_config("protopnet")
    assert recipe.protopnet == own
    assert (recipe.optimizer, recipe.lr, recipe.batch_size) == ("adam", 1e-4, 80)


def test_the_toy_recipe_is_appendix_a():
    config, train = recipe("patchnet_convergence", "patchnet")
    assert tuple(config.images.size) == (128, 128)
    assert (train.model.options["m"], train.model.options["stride"]) == (17, 17)
    assert (train.lr, train.batch_size) == (5e-5, 8)
    grids = {name: found.model.options["grid"] for name, found in config.train.items()}
    assert grids == {
        "patchnet": "ceil",
        "patchnet_floor": "floor",
        "patchnet_center": "center",
    }


def test_the_lectures_recipe():
    config, train = recipe("mmci_prostate", "vgg16")
    assert (config.tile.patch_px, config.tile.target_mpp) == (512, 0.172)
    assert (train.optimizer, train.lr, train.rho, train.momentum) == ("rmsprop", 5e-5, 0.9, 0.9)
    assert (train.lr_halve_after, train.patience, train.monitor) == (3, 5, "roc_auc")
    assert config.evaluate.threshold == 0.75
