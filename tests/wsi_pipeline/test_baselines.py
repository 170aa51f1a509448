"""The command that prints the papers' table for a folder of images."""

import csv

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline import baselines, cli
from wsi_pipeline.baselines import BaselineOptions, format_table, run_baselines
from wsi_pipeline.config import SplitConfig
from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.settings import ImagesConfig

GREY = ImagesConfig(channels=1)


def make_nuclei(folder, n=12):
    """Zero-padded blobs: class 0 round and smooth, class 1 longer and speckled."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :48] - 24
    for label, name in enumerate(("BJ", "NIH3T3")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            radius = 12 + random.uniform(-1, 1)
            inside = rows**2 + (columns / (1 + 0.6 * label)) ** 2 < radius**2
            noise = random.normal(0, 4 + 30 * label, (48, 48))
            image = np.where(inside, np.clip(120 + noise, 1, 255), 0).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    return make_nuclei(tmp_path_factory.mktemp("nuclei") / "data")


def test_the_papers_table_is_printed_and_written(nuclei, tmp_path, capsys):
    arguments = ["baselines", str(nuclei), "--set", "channels=1", "--quiet"]
    code = cli.main([*arguments, "--nonzero-is-object", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert code == 0
    assert "PFTAS + Zernike + Haralick" in said
    assert "shape + LBP + PFTAS" in said
    assert "train 14, val 5, test 5" in said or "train 16, val 4, test 4" in said
    with (tmp_path / "out" / "baselines.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    nuclei_row = rows[-1]
    assert (nuclei_row["classifier"], nuclei_row["n_features"]) == ("logistic", "93")  # 3 + 36 + 54
    assert float(nuclei_row["test"]) == 1.0


def test_figures_can_be_counted_again_from_the_predictions(nuclei, tmp_path):
    options = ["--set", "channels=1", "--split", "folds", "--folds", "3", "--quiet"]
    assert cli.main(["baselines", str(nuclei), *options, "--out", str(tmp_path)]) == 0
    with (tmp_path / "baselines.csv").open(newline="") as file:
        figures = {f"{r['classifier']}:{r['features']}": r for r in csv.DictReader(file)}
    with (tmp_path / "predictions.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    assert len(images) == 24
    for name, figure in figures.items():
        right = [image[name] == image["label"] for image in images]
        assert float(figure["test"]) == pytest.approx(np.mean(right))
        assert figure["val"] == ""


def test_splits_that_folders_give_are_taken(tmp_path):
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        make_nuclei(tmp_path / "data" / split, n)
    found = run_baselines(tmp_path / "data", GREY, BaselineOptions())
    assert found.n_by_split == {"train": 12, "val": 6, "test": 8}
    assert all(r.val is not None and r.test is not None for r in found.results)
    table = format_table(found)
    vals = [float(line.split()[-3].rstrip("%")) for line in table.splitlines()
            if line.endswith(("54", "67", "79", "92", "38", "13", "25"))]  # fmt: skip
    assert vals[:7] == sorted(vals[:7], reverse=True)  # the best on validation first


def test_groups_leave_one_patient_out_at_a_time(nuclei, tmp_path):
    rows = "".join(f"{c}/{i:02d}.png,p{i % 3}\n" for c in ("BJ", "NIH3T3") for i in range(12))
    (tmp_path / "t.csv").write_text("file,patient\n" + rows)
    config = ImagesConfig(channels=1, table=tmp_path / "t.csv")
    found = run_baselines(nuclei, config, BaselineOptions(scheme="groups"))
    assert found.rounds == 3
    assert all((r.predicted >= 0).all() for r in found.results)
    with pytest.raises(ConfigError, match="no image says its patient"):
        run_baselines(nuclei, GREY, BaselineOptions(scheme="groups"))


@pytest.mark.parametrize(
    ("words", "folds", "seed"),
    [((), 3, 7), (("--folds", "4"), 4, 7), (("--seed", "0"), 3, 0)],
)
def test_folds_and_seed_are_the_configs_where_nothing_else_is_said(
    tmp_path, monkeypatch, words, folds, seed
):
    asked = []

    def stop(folder, config, options, **_):
        asked.append(options)
        raise ModelError("enough")

    monkeypatch.setattr(baselines, "run_baselines", stop)
    config = tmp_path / "c.yaml"
    config.write_text("seed: 7\nsplits: {folds: 3}\n")
    assert cli.main(["baselines", str(tmp_path), "--config", str(config), *words]) == 1
    assert (asked[0].splits.folds, asked[0].seed) == (folds, seed)


def test_folds_of_patients_leave_one_out_at_a_time(nuclei, tmp_path):
    config = ImagesConfig(channels=1, patient_pattern="^[01]")
    options = BaselineOptions(scheme="folds", splits=SplitConfig(folds="patients"))
    assert run_baselines(nuclei, config, options).rounds == 2


def test_a_model_is_never_asked_about_what_it_learnt(tmp_path):
    """Labels at random: whoever predicts them right on held-out images has seen them."""
    random = np.random.default_rng(3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(30):
            noise = random.integers(0, 256, (24, 24), np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{i}.png")
    options = BaselineOptions(scheme="folds", splits=SplitConfig(folds=5))
    found = run_baselines(tmp_path, GREY, options)
    assert np.mean([r.test for r in found.results]) == pytest.approx(0.5, abs=0.2)
    assert max(r.train for r in found.results) > 0.9


def test_how_many_processes_work_changes_nothing(nuclei):
    one, two = (run_baselines(nuclei, GREY, BaselineOptions(), workers=n) for n in (1, 2))
    assert [r.test for r in one.results] == [r.test for r in two.results]


@pytest.mark.parametrize("balance", ["upsample", "equal"])
def test_training_images_are_balanced_where_asked(nuclei, tmp_path, balance, monkeypatch):
    from wsi_pipeline import baselines

    seen = []
    fit = baselines.fit_classifier

    def note_and_fit(kind, x, y):
        seen.append(np.bincount(y))
        return fit(kind, x, y)

    monkeypatch.setattr(baselines, "fit_classifier", note_and_fit)
    rows = "".join(f"BJ/{i:02d}.png\n" for i in range(12))
    rows += "".join(f"NIH3T3/{i:02d}.png\n" for i in range(5))
    (tmp_path / "t.csv").write_text("file\n" + rows)
    config = ImagesConfig(channels=1, table=tmp_path / "t.csv")
    run_baselines(nuclei, config, BaselineOptions(balance=balance))
    assert all(n[0] == n[1] for n in seen)


def test_a_broken_file_is_named_and_left_out(tmp_path, capsys):
    folder = make_nuclei(tmp_path / "data", 8)
    (folder / "BJ" / "03.png").write_bytes(b"not an image")
    assert cli.main(["baselines", str(folder), "--set", "channels=1", "--quiet"]) == 3
    said = capsys.readouterr()
    assert "left out: 03.png: cannot be decoded" in said.err or "BJ/03.png" in said.err
    assert "15 images" in said.out
    assert "no masks" in said.out


def test_masks_of_a_table_give_the_shapes(nuclei, tmp_path):
    rows = []
    for name in ("BJ", "NIH3T3"):
        for i in range(12):
            image = Image.open(nuclei / name / f"{i:02d}.png")
            path = nuclei / f"mask_{name}_{i}.png"
            image.point(lambda v: 255 * (v > 0)).save(path)
            rows.append(f"{name}/{i:02d}.png,{name},{path.name}\n")
    (tmp_path / "t.csv").write_text("file,class,mask\n" + "".join(rows))
    config = ImagesConfig(channels=1, table=tmp_path / "t.csv")
    by_table = run_baselines(nuclei, config, BaselineOptions())
    by_pixels = run_baselines(nuclei, GREY, BaselineOptions(nonzero_is_object=True))
    assert by_table.results[-1].row.features == ("shape", "lbp", "pftas")
    assert by_table.results[-1].test == by_pixels.results[-1].test


def test_a_split_without_training_images_is_refused(nuclei, tmp_path):
    (tmp_path / "t.csv").write_text("file,split\nBJ/00.png,test\nNIH3T3/00.png,test\n")
    config = ImagesConfig(channels=1, table=tmp_path / "t.csv")
    with pytest.raises(ModelError, match="both classes"):
        run_baselines(nuclei, config, BaselineOptions())
