"""Every config runs to its last table: on fake data of its layout, with tiny networks.

What is drawn means nothing. It shows that each number of the papers' tables has a command that
gives a number. A config without fake data here, or without a list of its numbers, is a failure.
"""

import contextlib
import csv
import importlib
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tifffile
import yaml

from tests.helpers.published_data import (
    draw_camelyon_patches,
    draw_camelyon_tables,
    draw_cenpa,
    draw_folders,
    draw_glas,
    draw_isic2016,
    draw_isic2017,
    draw_public_nuclei,
    draw_slides,
)
from tests.helpers.quick_pictures import quick_pictures
from wsi_pipeline.cli.app import main
from wsi_pipeline.demo import textures_folder, toy

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PAGE = ROOT / "docs" / "reproduction.md"

# ------------------------------------------------------------ the numbers of a table

Cell = tuple[str, ...]  # model, then keys of its metrics.json; or a key of `value_of`

LOSS = ("loss", "accuracy")
RANKED = ("roc_auc", *LOSS)
MATRIX = ("tp", "fp", "fn", "tn")


def of_splits(models: Iterable[str], splits: Iterable[str], names: Iterable[str]) -> list[Cell]:
    return [(m, "splits", s, name) for m in models for s in splits for name in names]


def of_maps(*models: str) -> list[Cell]:
    """Paper 2, tables 2 and 7."""
    names = ("average_exact_match", "average_recall", "average_roc_auc")
    return [(m, "localisation", name) for m in models for name in names]


def seconds(*models: str) -> list[Cell]:
    return [(m, "seconds") for m in models]


def value_of(run: Path, cell: Cell) -> Any:
    model, *keys = cell
    if keys[0] == "masked":  # mean over masks, of a method's maps
        with (run / "explanations" / model / "methods.csv").open(newline="") as file:
            (row,) = (row for row in csv.DictReader(file) if row["method"] == keys[1])
        return float(row[keys[2]])
    if keys == ["seconds"]:
        with (run / "models" / model / "history.csv").open(newline="") as file:
            return float(list(csv.DictReader(file))[-1]["seconds"])
    if keys[0] == "map":  # Q of the patch around a pixel, by class and place
        values = tifffile.imread(run / "heatmaps" / model / f"{keys[1]}.patchnet.tif")
        return float(values[tuple(map(int, keys[2].split()))])
    value = json.loads((run / "evaluation" / model / "metrics.json").read_text())
    for key in keys:
        value = value[key]
    return value


# ------------------------------------------------------------ each config's data, settings, numbers


@dataclass(frozen=True)
class Fake:
    """What a config needs to run in seconds, and the numbers it is for."""

    draw: Callable[[Path], None]  # into the folder of the configs
    settings: tuple[str, ...]  # over the config's own, along with those of `tiny_models`
    cells: list[Cell]


def folders(name: str, classes: str, splits: str, channels: int) -> Callable[[Path], None]:
    return lambda configs: draw_folders(configs / name, classes.split(), splits.split(), channels)


def slides(name: str, splits: str) -> Callable[[Path], None]:
    return lambda configs: draw_slides(configs / name, splits)


SIZE_28 = "images.size=[28, 36]"
SIZE_32 = "images.size=[32, 32]"  # the least that five poolings take
SIZE_40 = "images.size=[40, 40]"
TILES = (
    "tile.target_mpp=4",
    "tile.patch_px=32",
    "tile.stride_px=32",
    "tile.inner_px=16",
    "tile.tissue={mpp: 16.0, min_object_um2: 1000.0}",
    "evaluate.reference_downsample=4",
    "evaluate.threshold=0.5",
)
# A push after the only epoch, and no file of weights.
PUSHED = (
    "train.protopnet.protopnet.push_from=1",
    "train.protopnet.protopnet.solver_steps=50",
    "train.protopnet.model.weights=null",
)
SPLIT = "train train val val test test"
NETS = ("patchnet_11", "patchnet_17", "patchnet_31", "cam")
OURS = ("patchnet_11", "patchnet_17", "patchnet_31", "vgg16", "cam")
FINE_TUNED = (
    "vgg16_probe",
    "vgg16_block5",
    "vgg16_block5_slow",
    "vgg16_block5_moments",
    "vgg16_lecture",
)
IMAGENET_PATCHES = ("vgg16_lecture", "vgg16_probe", "vgg16_block5")
TRAIN_VAL = ("train", "val")
ALL = ("train", "val", "test")
PATCHES = ("accuracy", "recall", "precision", "roc_auc", *MATRIX)
SLIDES = [("slide", "roc_auc"), ("slide", "sensitivity"), ("slide", "specificity")]


def of_slides(*models: str) -> list[Cell]:
    froc = [("froc", "score"), *(("froc", "sensitivity_at", r) for r in ("0.25", "1", "8"))]
    patch = [("patch", name) for name in PATCHES]
    return [(m, *keys) for m in models for keys in (*froc, *patch, *SLIDES)]


FAKES: dict[str, Fake] = {
    # P1 and P2, appendix A: Q of a black and of a white patch
    "patchnet_convergence": Fake(
        lambda configs: toy.write_toy(configs / "toy"),
        (SIZE_32,),
        [
            (m, "map", f"test__{image}__image", place)
            for m in ("patchnet", "patchnet_floor", "patchnet_center")
            for image, place in (("0_black", "16 16"), ("1_corner", "4 4"))
        ],
    ),
    # P1, figure 4
    "patchnet_dtd": Fake(
        folders("dtd", "cracked perforated", "train val test", 3),
        (SIZE_40, "images.fit=resize", "train.patchnet.model.preprocess.crop=[32, 32]"),
        of_splits(["patchnet"], ALL, ["accuracy", *MATRIX]),
    ),
    # P1, figure 6
    "patchnet_isic2016": Fake(
        folders("isic2016", "benign malignant", "train val test", 3),
        (SIZE_28,),
        of_splits(["precision_patchnet_15", "precision_patchnet_31"], ALL, ["accuracy", *MATRIX]),
    ),
    # P2, tables 1 and 2
    "patchnet_isic2017": Fake(
        draw_isic2017,
        (SIZE_28,),
        of_splits(["patchnet_21", "cam"], ("val", "test"), LOSS) + of_maps("patchnet_21", "cam"),
    ),
    "patchnet_isic2017_vgg11": Fake(
        draw_isic2017,
        (SIZE_32,),
        of_splits(["vgg11"], ("val", "test"), LOSS) + of_maps("vgg11"),
    ),
    # P2, table 3
    "patchnet_dtd_p2": Fake(
        folders("dtd_p2", "cracked perforated", "train val", 3),
        (SIZE_32,),
        of_splits(["patchnet_31", "cam", "vgg11"], TRAIN_VAL, LOSS),
    ),
    # P2, table 5
    "patchnet_mcf10a": Fake(
        folders("nuclei_mcf10a", "BJ MCF10A", "train val", 1),
        (SIZE_40,),
        of_splits(NETS, TRAIN_VAL, LOSS) + seconds(*NETS),
    ),
    "patchnet_mcf10a_vgg11": Fake(
        folders("nuclei_mcf10a", "BJ MCF10A", "train val", 1),
        (SIZE_32,),
        of_splits(["vgg11"], TRAIN_VAL, LOSS) + seconds("vgg11"),
    ),
    # P2, table 7
    "patchnet_cenpa": Fake(draw_cenpa, (SIZE_40,), of_maps("patchnet_11", "cam")),
    "patchnet_cenpa_vgg11": Fake(draw_cenpa, (SIZE_32,), of_maps("vgg11")),
    # P2, table 8; P1, tables 3 and 4
    "patchnet_nuclei": Fake(
        folders("nuclei", "BJ NIH3T3", "train val", 1),
        (SIZE_40,),
        of_splits(NETS, TRAIN_VAL, LOSS)
        + seconds(*NETS)
        + of_splits(["patchnet_17_p1"], TRAIN_VAL, ["accuracy", *MATRIX]),
    ),
    "patchnet_nuclei_vgg11": Fake(
        folders("nuclei", "BJ NIH3T3", "train val", 1),
        (SIZE_32,),
        of_splits(["vgg11"], TRAIN_VAL, LOSS) + seconds("vgg11"),
    ),
    # ours, by ProtoPNet's recipe
    "protopnet_nuclei": Fake(
        folders("nuclei", "BJ NIH3T3", "train val", 1),
        (SIZE_32, *PUSHED),
        of_splits(["protopnet"], TRAIN_VAL, LOSS) + seconds("protopnet"),
    ),
    "protopnet_camelyon16_patches": Fake(
        draw_camelyon_tables,
        (
            SIZE_32,
            *PUSHED,
            "images.table=configs/camelyon/without_tumor_001.csv",
            "stages=[tile, train, predict, evaluate]",
        ),
        [("protopnet", "patch", name) for name in ("roc_auc", "accuracy")] + seconds("protopnet"),
    ),
    # the lecture's three attempts
    "mmci_prostate": Fake(
        slides(".", SPLIT),
        TILES,
        of_slides("vgg16"),
    ),
    # CAMELYON16's two tasks
    "camelyon16": Fake(
        slides(".", ""),
        (*TILES, "splits={val_fraction: 0.33, test_fraction: 0.33}"),
        of_slides("vgg16"),
    ),
    # ours
    "camelyon16_mosaic": Fake(
        slides("mosaic/cohort", "train train train train test test"),
        (*TILES, "input=configs/mosaic/cohort/manifest.csv"),
        of_slides("vgg16", "patchnet"),
    ),
    "camelyon16_explained": Fake(
        slides("mosaic/cohort", "train train train train test test"),
        (
            *TILES,
            "input=configs/mosaic/cohort/manifest.csv",
            "explain.methods=[saliency, grad_cam, patchnet]",
            "train.vgg16.optimizer=rmsprop",
        ),
        of_slides("vgg16", "patchnet"),
    ),
    "demo": Fake(
        slides("cohort", SPLIT),
        TILES,
        of_slides("vgg16", "patchnet"),
    ),
    "textures": Fake(
        lambda configs: textures_folder.main([str(configs / "textures"), "--side", "128"]),
        (SIZE_32,),
        of_splits(OURS, ("val", "test"), ["roc_auc", *LOSS]) + seconds(*OURS),
    ),
    "isic2017_short": Fake(
        draw_isic2017,
        (SIZE_32,),
        of_splits(["patchnet_21", "cam", "vgg11"], ("val", "test"), RANKED),
    ),
    "isic2016_short": Fake(
        draw_isic2016,
        (SIZE_32,),
        of_splits(["precision_patchnet_15", "precision_patchnet_31"], ("train", "test"), RANKED),
    ),
    "nuclei_short": Fake(
        draw_public_nuclei,
        (SIZE_40,),
        of_splits((*NETS, "vgg11"), ("val", "test"), RANKED) + seconds(*NETS, "vgg11"),
    ),
    "glas_short": Fake(
        draw_glas,
        (SIZE_32,),
        [
            (model, "masked", method, figure)
            for model, method in (
                ("patchnet_21", "patchnet"),
                ("cam", "cam"),
                ("cam", "grad_cam"),
                ("vgg11", "grad_cam"),
            )
            for figure in ("exact_match", "recall", "roc_auc")
        ]
        + of_splits(["patchnet_21", "cam", "vgg11"], ("val", "test"), RANKED),
    ),
    "camelyon16_patches_imagenet": Fake(
        draw_camelyon_tables,
        (
            SIZE_32,
            *(f"train.{m}.model.weights=null" for m in IMAGENET_PATCHES),
            "input=configs/camelyon",
            "images.table=configs/camelyon/without_tumor_001.csv",
            "stages=[tile, train, predict, evaluate]",
        ),
        [(m, "patch", name) for m in IMAGENET_PATCHES for name in ("roc_auc", "accuracy")],
    ),
    "glas_vgg16": Fake(
        draw_glas,
        (
            SIZE_32,
            *(f"train.{m}.model.weights=null" for m in FINE_TUNED),
            "stages=[tile, train, predict, evaluate]",
        ),
        [
            (m, "patch", name)
            for m in (*FINE_TUNED, "vgg16_scratch")
            for name in ("roc_auc", "accuracy")
        ],
    ),
    "camelyon16_patches": Fake(
        draw_camelyon_tables,
        (
            SIZE_32,
            "input=configs/camelyon",
            "images.table=configs/camelyon/without_tumor_001.csv",
            "stages=[tile, train, predict, evaluate]",
        ),
        [(m, "patch", name) for m in OURS for name in ("roc_auc", "accuracy")] + seconds(*OURS),
    ),
}


# ------------------------------------------------------------ tiny networks, by settings alone


def tiny_models(config: dict[str, Any]) -> list[str]:
    """Shrink each network and its training; what decides the tables stays as it is."""
    settings = []
    for name, train in config["train"].items():
        model = (train or {}).get("model") or {}
        options = dict(model.get("options") or {})
        if "patchnet" in model.get("name", name):
            options |= {"m": 5, "stride": 4, "filters": 3, "depth": 2}
            if options.get("region"):
                options["region"] = 20
        else:
            options["width"] = 0.02
        key = f"train.{name}"
        settings += [f"{key}.model.options={json.dumps(options)}", f"{key}.max_epochs=1"]
        settings += [f"{key}.lr=0.003", f"{key}.batch_size=8"]
        if (train or {}).get("sampling") != "shuffle":
            settings.append(f"{key}.steps_per_epoch=4")
    return [*settings, "evaluate.bootstrap=10"]


def as_words(settings: Iterable[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


class Runs:
    """Runs of the configs in a folder that has them and their data; each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._codes: dict[str, int] = {}

    def of(self, stem: str) -> tuple[int, Path]:
        """Exit code and run folder of ``wsi-pipeline run configs/<stem>.yaml``."""
        place = self.folder / stem
        if stem not in self._codes:
            fake = FAKES[stem]
            (place / "configs").mkdir(parents=True)
            shutil.copy(ROOT / "configs" / f"{stem}.yaml", place / "configs")
            config = yaml.safe_load((place / "configs" / f"{stem}.yaml").read_text())
            fake.draw(place / "configs")
            settings = [*tiny_models(config), *fake.settings]
            command = ["run", f"configs/{stem}.yaml", "--out", "run", "--quiet", "--device", "cpu"]
            with contextlib.chdir(place), quick_pictures():
                self._codes[stem] = main([*command, *as_words(settings)])
        return self._codes[stem], place / "run"


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("configs"))


FAST = (
    "mmci_prostate",
    "patchnet_isic2017",
    "textures",
)  # of slides, of images with masks, of images


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else [pytest.mark.slow])
        for path in CONFIGS
    ],
)
def test_every_number_of_the_papers_tables_is_a_number(path, runs, capsys):
    assert path.stem in FAKES, f"{path.name}: give it fake data and its numbers in FAKES"
    code, run = runs.of(path.stem)
    assert code == 0, capsys.readouterr().err
    assert FAKES[path.stem].cells
    missing = []
    for cell in FAKES[path.stem].cells:
        value = value_of(run, cell)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            missing.append((cell, value))
    assert not missing
    stages = yaml.safe_load(path.read_text()).get("stages", ["report"])
    assert (run / "report.html").is_file() == ("report" in stages)


def test_fakes_are_of_configs_that_exist():
    assert set(FAKES) == {path.stem for path in CONFIGS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stem", [stem for stem, fake in FAKES.items() if any("localisation" in c for c in fake.cells)]
)
def test_maps_are_compared_with_every_mask(runs, stem):
    """Paper 2, tables 2 and 7: exact match over all images, recall over those with an object."""
    _, run = runs.of(stem)
    for model in {cell[0] for cell in FAKES[stem].cells}:
        found = json.loads((run / "evaluation" / model / "metrics.json").read_text())
        located = found["localisation"]
        assert (located["n"], located["recall_n"], located["skipped"]) == (3, 2, 0)
        assert located["elsewhere"] == {}
        assert found["evaluated"] == ("val" if "isic" in stem else "test")


def test_the_report_shows_seconds_and_maps(runs):
    run = runs.of("patchnet_isic2017")[1]
    page = (run / "report.html").read_text()
    assert re.search(r"An epoch took .* s \(median", page)
    table = page.partition("<h2>Maps compared with masks</h2>")[2].partition("</section>")[0]
    for model in ("patchnet_21", "cam"):
        metrics = json.loads((run / "evaluation" / model / "metrics.json").read_text())
        for figure in ("average_exact_match", "average_recall", "average_roc_auc"):
            assert f'value="{metrics["localisation"][figure]}"' in table
    page = (runs.of("mmci_prostate")[1] / "report.html").read_text()
    assert re.search(r"An epoch took .* s \(median", page)


# ------------------------------------------------------------ the page's commands


def commands_of_the_table() -> list[list[str]]:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    found = re.findall(r"`wsi-pipeline ([^`]*)`", "\n".join(rows))
    return [shlex.split(text) for text in dict.fromkeys(found)]


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_of_the_table(), ids=" ".join)
def test_commands_of_the_table_run_to_numbers(command, runs, tmp_path, capsys):
    if command[0] == "run":
        assert len(command) == 2, "a setting that the config should have"
        assert runs.of(Path(command[1]).stem)[0] == 0
        return
    name, *words = command
    assert name == "baselines"
    if words[0] == "dtd":
        draw_folders(tmp_path / "dtd", ("cracked", "perforated"), ALL, 3)
    else:
        draw_folders(tmp_path / "nuclei", ("BJ", "NIH3T3"), TRAIN_VAL, 1)
    with contextlib.chdir(tmp_path):
        assert main([name, *words, "--out", "table", "--quiet"]) == 0
        with Path("table/baselines.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    assert len(rows) == (14 if words[0] == "dtd" else 15)
    splits = ALL if words[0] == "dtd" else TRAIN_VAL
    assert all(0 <= float(row[split]) <= 1 for row in rows for split in splits)


def commands_of_the_blocks() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.mark.slow
def test_commands_of_the_blocks_run_in_their_order(tmp_path, capsys):
    """As they are typed, from the project's folder, on fake data where a user has real data."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for draw in (draw_isic2017, draw_isic2016, draw_public_nuclei, draw_glas):
        draw(tmp_path)
    draw_folders(tmp_path / "dtd", ("cracked", "perforated"), ALL, 3)
    draw_camelyon_patches(tmp_path / "PATCHES")
    with contextlib.chdir(tmp_path), quick_pictures():
        for program, *words in commands_of_the_blocks():
            words = [word.replace("$PWD", str(tmp_path)) for word in words]
            if program == "python":
                assert words[0] == "-m"
                if words[1] == "wsi_pipeline.cli.cross_validation":
                    fake = FAKES[Path(words[2]).stem].settings
                    settings = [*tiny_models(yaml.safe_load(Path(words[2]).read_text())), *fake]
                    at = words.index("--weights")
                    del words[at : at + 2]  # tiny networks start from random weights
                    words += ["--folds", "3", *as_words(s for s in settings if "stages" not in s)]
                assert importlib.import_module(words[1]).main(words[2:]) == 0, words
                continue
            assert program == "wsi-pipeline"
            if words[0] == "run":
                config = yaml.safe_load(Path(words[1]).read_text())
                settings = [*tiny_models(config), *FAKES[Path(words[1]).stem].settings]
                own = ("input=", "images.table=", "stages=")  # as the command has them
                settings = [s for s in settings if not s.startswith(own)]
                words += ["--quiet", *as_words(settings)]
            assert main(words) == 0, words
    message = capsys.readouterr().out
    assert re.search(
        r"patchnet_11 +4 +[01]\.\d+", message
    )  # the pooled table: four patches held out


def test_every_published_config_is_in_the_table():
    named = {Path(words[1]).stem for words in commands_of_the_table() if words[0] == "run"}
    published = {"mmci_prostate", *(p.stem for p in CONFIGS if p.stem.startswith("patchnet_"))}
    assert named == published
