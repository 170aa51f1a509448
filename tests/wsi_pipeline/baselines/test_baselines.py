"""The command that prints the papers' table for a folder of images."""

import csv
import errno
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from wsi_pipeline.baselines import comparison as baselines
from wsi_pipeline.baselines import features as baseline_features
from wsi_pipeline.baselines.comparison import BaselineOptions, format_table, run_baselines
from wsi_pipeline.cli import app as cli
from wsi_pipeline.config.reading import SplitConfig
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ConfigError, ManifestError, ModelError

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
    printed = capsys.readouterr().out
    assert code == 0
    assert "PFTAS + Zernike + Haralick" in printed
    assert "shape + LBP + PFTAS" in printed
    assert "train 14, val 5, test 5" in printed or "train 16, val 4, test 4" in printed
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
    rows = re.findall(r"([\d.]+)% +[\d.]+% +(?:54|67|79|92|38|13|25) ", table)
    vals = [float(val) for val in rows]
    assert len(vals) == 14
    assert vals[:7] == sorted(vals[:7], reverse=True)  # the best on validation first


@pytest.mark.parametrize("scheme", ["shares", "folds"])
def test_the_roc_auc_is_of_images_that_were_held_out(nuclei, scheme, tmp_path):
    classes = ("BJ", "NIH3T3")  # some of the wrong one, so that no model is perfect
    rows = "".join(
        f"{name}/{i:02d}.png,{classes[label ^ (i % 4 == 0)]}\n"
        for label, name in enumerate(classes)
        for i in range(12)
    )
    (tmp_path / "t.csv").write_text("file,class\n" + rows)
    config = ImagesConfig(channels=1, table=tmp_path / "t.csv")
    found = run_baselines(nuclei, config, BaselineOptions(scheme=scheme, seed=1))
    labels = np.array([e.label for e in found.entries])
    table = format_table(found)
    for r in found.results:
        held_out = np.isfinite(r.decision)
        assert np.array_equal(held_out, r.predicted >= 0)
        assert np.array_equal(r.predicted[held_out], r.decision[held_out] > 0)
        if scheme == "folds":  # with shares, val is held out too
            assert r.roc_auc == pytest.approx(roc_auc_score(labels, r.decision))
        if r.roc_auc_ci95:
            low, high = r.roc_auc_ci95
            assert low <= r.roc_auc <= high
            assert f"{r.roc_auc:.3f} ({low:.3f} to {high:.3f})" in table
    assert any(r.roc_auc_ci95 for r in found.results) or scheme == "shares"


def test_the_accuracy_of_always_giving_one_answer_is_named(tmp_path):
    for split, n in (("train", 4), ("test", 4)):
        make_nuclei(tmp_path / "data" / split, n)
    (tmp_path / "data/test/BJ/00.png").unlink()
    found = run_baselines(tmp_path / "data", GREY, BaselineOptions())
    assert found.largest == ("NIH3T3", pytest.approx(4 / 7))
    assert "always answering NIH3T3: 57.1%" in format_table(found)


def test_groups_leave_one_patient_out_at_a_time(nuclei, tmp_path):
    rows = "".join(f"{c}/{i:02d}.png,p{i % 3}\n" for c in ("BJ", "NIH3T3") for i in range(12))
    (tmp_path / "t.csv").write_text("file,patient\n" + rows)
    config = ImagesConfig(channels=1, table=tmp_path / "t.csv")
    found = run_baselines(nuclei, config, BaselineOptions(scheme="groups"))
    assert found.rounds == 3
    assert all((r.predicted >= 0).all() for r in found.results)
    with pytest.raises(ConfigError, match="no image has a patient"):
        run_baselines(nuclei, GREY, BaselineOptions(scheme="groups"))


def contradicting_table(path, split):
    """Every patient is in all parts of the official split."""
    rows = "".join(
        f"{c}/{i:02d}.png,p{i % 3},{split(i)}\n" for c in ("BJ", "NIH3T3") for i in range(12)
    )
    path.write_text("file,patient,split\n" + rows)
    return ImagesConfig(channels=1, table=path)


@pytest.mark.parametrize("scheme", ["groups", "folds", "shares"])
@pytest.mark.parametrize(
    "split", [lambda i: ("train", "test")[i // 6], lambda i: f"part {i}"], ids=["two", "odd words"]
)
def test_a_split_column_that_is_not_used_is_not_checked(nuclei, tmp_path, scheme, split):
    """GlaS: 11 of 16 patients are in two parts of the official split; --split groups needs none."""
    config = contradicting_table(tmp_path / "t.csv", split)
    options = BaselineOptions(scheme=scheme, splits=SplitConfig(folds=3))
    found = run_baselines(nuclei, config, options)
    plain = tmp_path / "plain.csv"
    plain.write_text(
        "".join(
            line.rsplit(",", 1)[0] + "\n" for line in (tmp_path / "t.csv").read_text().splitlines()
        )
    )
    same = run_baselines(nuclei, ImagesConfig(channels=1, table=plain), options)
    assert [r.test for r in found.results] == [r.test for r in same.results]


@pytest.mark.parametrize("scheme", ["given", None])
def test_a_split_column_that_is_used_is_checked(nuclei, tmp_path, scheme):
    config = contradicting_table(tmp_path / "t.csv", lambda i: ("train", "test")[i // 6])
    with pytest.raises(ManifestError, match="patient 'p0' is in 2 splits"):
        run_baselines(nuclei, config, BaselineOptions(scheme=scheme))


def test_folders_named_as_splits_do_not_stop_folds(tmp_path):
    for split in ("train", "test"):
        make_nuclei(tmp_path / "data" / split, 6)
    config = ImagesConfig(channels=1, patient_pattern="^[0-9]+")  # each in both folders
    found = run_baselines(tmp_path / "data", config, BaselineOptions(scheme="groups"))
    assert found.rounds == 6
    with pytest.raises(ManifestError, match="in 2 splits"):
        run_baselines(tmp_path / "data", config, BaselineOptions())


def count_computed(monkeypatch):
    """List the images whose features are computed from now on."""
    computed = []
    extract = baseline_features._extract

    def note(folder, config, with_shape, entry):
        computed.append(entry.file)
        return extract(folder, config, with_shape, entry)

    monkeypatch.setattr(baseline_features, "_extract", note)
    return computed


def test_an_interrupted_command_continues_with_the_features_it_kept(tmp_path, monkeypatch, capsys):
    """The message said that what is finished is kept, and nothing was."""
    folder = make_nuclei(tmp_path / "data", 6)
    command = ["baselines", str(folder), "--set", "channels=1", "--split", "folds", "--folds", "3"]
    command += ["--workers", "1"]
    assert cli.main([*command, "--out", str(tmp_path / "undisturbed"), "--quiet"]) == 0
    computed = count_computed(monkeypatch)
    extract = baseline_features._extract

    def interrupt(*arguments):
        if len(computed) == 5:
            raise KeyboardInterrupt
        return extract(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(baseline_features, "_extract", interrupt)
        assert cli.main([*command, "--out", str(tmp_path / "out")]) == 130
    printed = capsys.readouterr().err
    assert "features of the images that were read are kept in the folder of --out" in printed
    assert len(list((tmp_path / "out/features").glob("*.json"))) == 5
    computed.clear()

    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert len(computed) == 12 - 5
    assert "features of 5 kept from before" in capsys.readouterr().err
    for name in ("baselines.csv", "predictions.csv"):
        ours, theirs = (tmp_path / out / name for out in ("out", "undisturbed"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_without_out_no_features_are_kept_and_the_message_says_so(nuclei, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(baseline_features, "_extract", interrupt)
    assert cli.main(["baselines", str(nuclei), "--set", "channels=1", "--workers", "1"]) == 130
    assert "without --out nothing is kept; the same command starts over" in capsys.readouterr().err


def test_kept_features_are_of_the_same_image_and_settings(tmp_path, monkeypatch):
    folder = make_nuclei(tmp_path / "data", 4)
    computed = count_computed(monkeypatch)

    def again(config=GREY, **options):
        computed.clear()
        found = run_baselines(folder, config, BaselineOptions(**options), keep=tmp_path / "keep")
        return len(computed), found.n_kept

    assert again() == (8, 0)
    assert again() == (0, 8)
    assert again(seed=3, balance="equal") == (0, 8)
    assert again(nonzero_is_object=True) == (8, 0)
    assert again(replace(GREY, size=(40, 40))) == (8, 0)
    assert again(ImagesConfig(channels=3)) == (8, 0)
    Image.fromarray(np.full((48, 48), 7, np.uint8)).save(folder / "BJ" / "00.png")
    assert again() == (1, 7)
    (folder / "BJ" / "01.png").rename(folder / "BJ" / "other name.png")
    assert again() == (0, 8)  # the same pixels under another name


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b.replace(b"0.", b"1.", 1)])
def test_damaged_kept_features_are_computed_again(tmp_path, monkeypatch, damage):
    folder = make_nuclei(tmp_path / "data", 4)
    first = run_baselines(folder, GREY, BaselineOptions(), keep=tmp_path / "keep")
    path = sorted((tmp_path / "keep").glob("*.json"))[0]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    computed = count_computed(monkeypatch)

    second = run_baselines(folder, GREY, BaselineOptions(), keep=tmp_path / "keep")

    assert len(computed) == 1
    assert path.read_bytes() == whole
    assert [r.test for r in second.results] == [r.test for r in first.results]


def test_a_disk_that_is_full_is_reported_once(nuclei, tmp_path, monkeypatch, capsys):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(baseline_features, "write_json", full)
    arguments = ["baselines", str(nuclei), "--set", "channels=1", "--out", str(tmp_path)]
    arguments += ["--workers", "1"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.count("No space left in") == 1


@pytest.mark.parametrize(
    ("words", "folds", "seed"),
    [((), 3, 7), (("--split", "folds", "--folds", "4"), 4, 7), (("--seed", "0"), 3, 0)],
)
def test_folds_and_seed_are_the_configs_by_default(tmp_path, monkeypatch, words, folds, seed):
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
    """Labels at random: correct predictions on held-out images mean that they were used."""
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


@pytest.mark.slow
def test_how_many_processes_work_changes_nothing(nuclei):
    one, two = (run_baselines(nuclei, GREY, BaselineOptions(), workers=n) for n in (1, 2))
    assert [r.test for r in one.results] == [r.test for r in two.results]


@pytest.mark.parametrize("balance", ["upsample", "equal"])
def test_training_images_are_balanced_where_asked(nuclei, tmp_path, balance, monkeypatch):
    from wsi_pipeline.baselines import comparison as baselines

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
    printed = capsys.readouterr()
    assert "left out: 03.png: cannot be decoded" in printed.err or "BJ/03.png" in printed.err
    assert "15 images" in printed.out
    assert "no masks" in printed.out


def test_images_without_their_mask_are_counted(tmp_path, capsys):
    """They were said to have none at all."""
    folder = make_nuclei(tmp_path / "data", 8)
    shutil.copy(folder / "BJ/00.png", folder / "mask.png")
    rows = [
        f"{name}/{i:02d}.png,{name},{'mask.png' * (name == 'BJ')}\n"
        for name in ("BJ", "NIH3T3")
        for i in range(8)
    ]
    (folder / "t.csv").write_text("file,class,mask\n" + "".join(rows))
    asked = ["--set", "channels=1", "--set", f"table={folder / 't.csv'}", "--quiet"]
    assert cli.main(["baselines", str(folder), *asked]) == 0
    assert "8 of 16 images have no mask" in capsys.readouterr().out


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


def test_empty_masks_of_the_normal_class_and_few_patients_are_explained(tmp_path):
    """Each normal image was left out for its black mask, and then one class was left."""
    folder = make_nuclei(tmp_path, 4)
    rows = ["file,class,patient,mask"]
    for path in sorted(folder.rglob("*.png")):
        file, name = path.relative_to(folder), path.parent.name
        mask = file if name == "NIH3T3" else "black.png"
        rows.append(f"{file},{name},p{path.stem},{mask}")
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(folder / "black.png")
    (folder / "table.csv").write_text("\n".join(rows))
    config = ImagesConfig(channels=1, table=folder / "table.csv")
    found = run_baselines(folder, config, BaselineOptions(scheme="groups"))
    assert not found.problems
    table = format_table(found)
    assert "(shape + LBP + PFTAS): no mask of the class BJ contains an object" in table
    assert "no interval of the ROC AUC: 4 patients, at least 5 are needed" in table
