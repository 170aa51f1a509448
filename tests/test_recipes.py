"""configs/*.yaml: each is read, and says what its paper says."""

from pathlib import Path

import pytest

from wsi_pipeline.config import read_config

CONFIGS = Path(__file__).parents[1] / "configs"


def recipe(name, model):
    config = read_config(CONFIGS / f"{name}.yaml")
    return config, config.train[model]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_is_read(path):
    assert read_config(path).train


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


def test_what_single_papers_add():
    config, train = recipe("patchnet_dtd", "patchnet")
    assert tuple(train.model.preprocess.crop) == (128, 128)
    config, train = recipe("patchnet_isic2017", "patchnet_21")
    assert config.images.equal_classes
    assert train.model.preprocess.gamma == 2.2
    assert train.model.preprocess.colour_constancy
    assert (train.augment.rotate_180, train.augment.zoom) == (True, 1.2)
    assert recipe("patchnet_isic2017", "cam")[1].batch_size == 64
    config, train = recipe("patchnet_nuclei", "patchnet_17")
    assert (config.images.channels, config.images.fit) == (1, "pad")
    assert train.model.options["region"] == 64


def test_the_toy_recipe_is_appendix_a():
    config, train = recipe("patchnet_convergence", "patchnet")
    assert tuple(config.images.size) == (128, 128)
    assert (train.model.options["m"], train.model.options["stride"]) == (17, 17)
    assert (train.lr, train.batch_size) == (5e-5, 8)


def test_the_lectures_recipe():
    config, train = recipe("mmci_prostate", "vgg16")
    assert (config.tile.patch_px, config.tile.target_mpp) == (512, 0.172)
    assert (train.optimizer, train.lr, train.rho, train.momentum) == ("rmsprop", 5e-5, 0.9, 0.9)
    assert (train.lr_halve_after, train.patience, train.monitor) == (3, 5, "roc_auc")
    assert config.evaluate.threshold == 0.75
