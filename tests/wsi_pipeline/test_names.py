"""One rule for every name that becomes a file or folder, and where it is applied."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.image_folder import list_images
from wsi_pipeline.cohort.manifest import check_entries, read_manifest
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ConfigError, ManifestError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import (
    MOST_BYTES,
    check_name,
    check_twins,
    find_name_problem,
    find_twins,
    fit_file_name,
    name_key,
    printable,
    propose_name,
    shorten,
)
from wsi_pipeline.stages.inputs import check_model_names

REFUSED = [
    "", ".", "..", "../../evil", "/abs/x", "a/b", "a\\b", ".hid", "a\nb", "a\rb", "a\tb", "a\0b",
    "a\x1bb", "a\x7fb", "a\x85b", "a\u2028b", "a\u2029b", "a\u200bb", "a\u200db", "\ufeffa",
    "a\u2066b", "a\u202egpj.b", "a\u061cb", "a\u00adb", "a\u3164", "a\ufffe", "caf\udce9",
    "\ud800", " a", "a ", "\u3000a", "a\u00a0", "a.", "con", "NUL", "aux.1", "com1", "LPT9.x",
    "x" * (MOST_BYTES + 1), "é" * (MOST_BYTES // 2 + 1),
]  # fmt: skip
ACCEPTED = [
    "tumor_001", "a b", "a,b", 'a"b', "a'b", "a;b", "a:b", "a#b", "100%", "a&b", "<b>", "a|b?*",
    "$x$", "{{ 7*7 }}", "[red]", "=1+1", "+1", "-1", "@x", "~", "!", "_x", "日本語", "🔬",
    "❤\ufe0f", "e\u0301", "é", "İ", "ß", "console", "com", "com10", "a.b.c", "1.2.840",
    "x" * MOST_BYTES,
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_what_leaves_its_folder_is_lost_or_unseen_is_refused(name):
    with pytest.raises(ConfigError, match=r"is not a valid name: .*; choose another name"):
        check_name(name, "slide_id")
    assert find_name_problem(propose_name(name)) == ""


@pytest.mark.parametrize("name", ACCEPTED, ids=ascii)
def test_unusual_names_are_accepted_and_can_be_files(tmp_path, name):
    assert check_name(name, "slide_id") == name
    path = (
        tmp_path / f".{name}.guided_smoothgrad.tif.0123abcd-4194304-0123abcd.part"
    )  # the longest we make
    path.touch()
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208  as the file system has it


@given(st.text(max_size=300))
@example("\udce9" * 250)
def test_a_proposed_name_is_accepted_and_an_accepted_one_kept(name):
    proposed = propose_name(name)
    assert find_name_problem(proposed) == ""
    if not find_name_problem(name):
        assert proposed == name


@given(st.text(max_size=40))
def test_an_accepted_name_stays_in_its_folder_on_one_line(name):
    if find_name_problem(name):
        return
    assert Path("/run", name).parts == ("/", "run", name)
    assert name == name.strip()
    assert len(name.splitlines()) == 1
    assert printable(name) == name
    assert not {unicodedata.category(c) for c in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(min_size=1, max_size=20))
def test_names_that_a_file_system_takes_for_one_are_twins(name):
    """macOS normalises; Windows and macOS fold case, one character at a time."""
    for form in ("NFC", "NFD"):
        assert name_key(unicodedata.normalize(form, name)) == name_key(name)
    simple = "".join(c.lower() if len(c.lower()) == 1 else c for c in name)
    if all(len(c.casefold()) == 1 for c in name):
        assert name_key(simple) == name_key(name)


def test_twins_are_named_with_their_difference():
    assert find_twins(["a", "b", "a"]) is None
    with pytest.raises(ConfigError, match="'VGG16' and 'vgg16' differ only in upper and lower"):
        check_twins(["VGG16", "x", "vgg16"], "the models")
    with pytest.raises(ConfigError, match=r"encoded \(NFC, NFD\)"):
        check_twins(["é", "e\u0301"], "the models")


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=4))
def test_a_file_name_of_several_parts_is_never_too_long(parts):
    name = fit_file_name([propose_name(part) for part in parts], ".log")
    assert name.endswith(".log")
    assert len(f".{name}.0123abcd-4194304-0123abcd.part".encode()) <= 255


def test_long_file_names_that_begin_alike_stay_apart():
    one, other = (fit_file_name(["tile", "x" * 200, "y" * 99 + end], ".log") for end in "ab")
    assert one != other


def test_messages_show_names_on_one_line():
    assert shorten("a\n\u202e\udcff") == "a\\n\\u202e\\xff"
    assert len(shorten("x" * 500)) == 80


# ------------------------------------------------------------ where names enter


@pytest.mark.parametrize(
    "name", ["../../evil", "/abs/x", "..", "", ".hid", "a/b", "a\nb", "a\u202eb", "nul"], ids=ascii
)
class TestModelNames:
    def test_in_a_config(self, tmp_path, name):
        path = tmp_path / "c.yaml"
        path.write_text(json.dumps({"train": {name: {"model": {"name": "vgg16"}}}}))
        with pytest.raises(ConfigError, match=r"c\.yaml: .* is not a valid name"):
            read_config(path)

    def test_on_the_command_line(self, name):
        with pytest.raises(ConfigError, match="is not a valid name"):
            read_config(None, section="train", models=[name])

    def test_read_back_from_a_run(self, name):
        recorded = {"train": {name: {"model": {"name": "vgg16"}}}}
        with pytest.raises(ConfigError, match=r"run\.json.* is not a valid name"):
            read_config(None, recorded=recorded)

    def test_of_a_unit_of_work(self, name):
        if name:  # without a model, a unit is of a slide alone
            for unit in ({"model": name}, {"slide_id": name}, {"variant": name}):
                with pytest.raises(StageError, match="is not a valid name"):
                    Unit("train", **unit)


def test_a_model_set_by_a_dotted_key_that_leads_out_is_refused():
    with pytest.raises(ConfigError, match="is not a valid name"):
        read_config(None, ["train.../../evil.lr=1"])


@pytest.mark.parametrize("value", ["5", "abc", "[1, 2]", "{1: {}}", "null"])
def test_a_section_without_names_is_left_to_validation(tmp_path, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"train: {value}")
    if value == "null":
        assert read_config(path).train == {}
        return
    with pytest.raises(ConfigError, match=r"c\.yaml: train"):
        read_config(path)
    with pytest.raises(ConfigError, match="settings: train"):
        read_config(None, [f"train={value}", "lr=1"], section="train")


def test_models_that_differ_only_in_case_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {vgg16: {}, VGG16: {model: {name: vgg16}}}")
    with pytest.raises(ConfigError, match="'vgg16' and 'VGG16' differ only in upper and lower"):
        read_config(path)


def test_a_model_with_dots_in_its_name_takes_settings(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {v1.2: {model: {name: vgg16}}, v1: {model: {name: vgg16}}}")
    for settings, section in ((["train.v1.2.lr=0.5"], None), (["lr=0.5"], "train")):
        config = read_config(path, settings, section=section, models=["v1.2"])
        assert (config.train["v1.2"].lr, config.train["v1"].lr) == (0.5, 5e-5)


def test_folders_of_a_run_that_no_model_can_have_are_not_models(tmp_path):
    for name in (".hid", "vgg16", "a\u200bb", "x "):
        (tmp_path / "scores" / name).mkdir(parents=True)
        (tmp_path / "scores" / name / "s.h5").touch()
    assert RunFolder(tmp_path).models_with("scores") == ["vgg16"]


@pytest.mark.parametrize("name", [" a", "a\u202e", "shards", "con"], ids=ascii)
def test_a_checkpoint_whose_name_cannot_be_a_folder_is_refused(tmp_path, name, capsys):
    (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "run").mkdir()
    checkpoint = str(tmp_path / f"{name}.safetensors")
    slides = ["--slides", str(tmp_path)]
    assert main(["predict", str(tmp_path / "run"), "--checkpoint", checkpoint, *slides]) == 1
    assert "rename the file (a checkpoint.safetensors: its folder)" in capsys.readouterr().err


def test_models_of_a_run_and_new_ones_may_not_differ_only_in_case(tmp_path):
    (tmp_path / "models" / "vgg16").mkdir(parents=True)
    (tmp_path / "models" / "vgg16" / "history.csv").touch()
    check_model_names(RunFolder(tmp_path), ["vgg16", "patchnet"])
    with pytest.raises(ConfigError, match="'vgg16' and 'VGG16' differ only in upper and lower"):
        check_model_names(RunFolder(tmp_path), ["VGG16"])


@pytest.mark.parametrize("name", ["shards", "../x"])
def test_a_model_named_as_a_folder_of_the_marks_is_refused(name):
    with pytest.raises(ConfigError, match=r"train.*(is reserved|is not a valid)"):
        read_config(None, [f"train.{name}.lr=1"])


@pytest.mark.parametrize("name", [n for n in REFUSED if n.strip() and "\n" not in n], ids=ascii)
def test_ids_of_a_manifest_are_checked(tmp_path, name):
    path = tmp_path / "m.csv"
    text = f'slide,slide_id\na.svs,"{name}"\n'
    path.write_bytes(
        text.encode("utf-8", "surrogatepass" if name == "\ud800" else "surrogateescape")
    )
    if name.strip() != name:  # spaces around a cell are of the table
        assert read_manifest(path)[0].slide_id == name.strip()
        return
    with pytest.raises(ManifestError, match=r"m\.csv, line \d: slide_id .* is not a valid name"):
        read_manifest(path)


@pytest.mark.parametrize("patient", ["p\n1", "p\u200b1", "p\udce91"], ids=ascii)
def test_patients_that_look_alike_are_refused(tmp_path, patient):
    path = tmp_path / "m.csv"
    path.write_bytes(f'slide,patient\na.svs,"{patient}"\n'.encode("utf-8", "surrogateescape"))
    with pytest.raises(ManifestError, match=r"line \d: patient 'p.*1' contains"):
        read_manifest(path)


@pytest.mark.parametrize(("one", "other"), [("A", "a"), ("é", "e\u0301"), ("Σ", "ς")])
def test_slides_that_a_file_system_would_mix_up_are_refused(tmp_path, one, other):
    path = tmp_path / "m.csv"
    path.write_text(f"slide,slide_id\nx.svs,{one}\ny.svs,{other}\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"differ only in.*x\.svs and .*y\.svs.*slide_id"):
        check_entries(read_manifest(path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["cat/a\u202eb.png", "dog/b.png"], "id of the image"),
        (["c\x01t/a.png", "dog/b.png"], "id of the image"),
        ([f"{'x' * 150}/{'y' * 100}.png", "dog/b.png"], "251 bytes|252 bytes"),
        (["images.png"], "the name of all of them"),
    ],
    ids=ascii,
)
def test_images_and_classes_follow_the_rule(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ManifestError, match=message):
        list_images(tmp_path, ImagesConfig())


def test_classes_that_differ_only_in_case_are_refused(tmp_path):
    for name in ("Benign/a.png", "benign/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(ManifestError, match="classes 'Benign' and 'benign' differ only in upper"):
        list_images(tmp_path, ImagesConfig())
