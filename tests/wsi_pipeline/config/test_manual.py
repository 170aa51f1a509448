"""The manual of the settings: what `init` and `settings` print."""

from dataclasses import replace
from pathlib import Path

import pytest

from wsi_pipeline.cli.app import main
from wsi_pipeline.config.manual import find_settings, list_settings, render_config
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.errors import ConfigError


@pytest.mark.parametrize(("kind", "model"), [("slides", "vgg16"), ("images", "patchnet")])
def test_a_config_that_init_writes_is_the_default(kind, model, tmp_path: Path, capsys):
    assert main(["init", "--for", kind]) == 0
    path = tmp_path / "my.yaml"
    path.write_text(capsys.readouterr().out)
    found = read_config(path)
    expected = read_config(None, section="train", models=[model])
    sections = {"images"} if kind == "images" else set()
    assert found.train == expected.train
    assert found.images == (read_config(None, ["images={}"]).images if sections else None)
    same = replace(found, input=None, out=None, train={}, images=None, stages=expected.stages)
    assert same == replace(expected, train={})


@pytest.mark.parametrize("kind", ["slides", "images"])
def test_every_setting_that_applies_is_in_it(kind):
    text = render_config(kind)
    other = {"slides": ("images.",), "images": ("tile.", "export.")}[kind]
    for setting in list_settings():
        name = setting.key.rsplit(".", 1)[-1]
        if not f"{setting.key}.".startswith(other) and setting.key != "train":
            assert f"{name}:" in text, setting.key


def test_splits_that_are_uncommented_are_read(tmp_path: Path):
    lines = render_config("slides").splitlines()
    at = lines.index("# splits:")
    end = next(n for n in range(at, len(lines)) if not lines[n].startswith("#"))
    shown = [line.removeprefix("# ") for line in lines[at:end]]
    kept = [line for line in lines[:at] if not line.startswith("splits:")] + lines[end:]
    path = tmp_path / "my.yaml"
    path.write_text("\n".join([*kept, *shown]))
    assert read_config(path).splits == read_config(None, ["splits={}"]).splits


@pytest.mark.parametrize(
    ("section", "first", "n"),
    [
        ("tile.tissue", "tile.tissue.mpp", 6),
        ("tissue", "tile.tissue.mpp", 6),
        ("train.augment.hue", "train.<model>.augment.hue", 1),
        ("train.vgg16.lr", "train.<model>.lr", 1),
        ("evaluate.rates", "evaluate.rates", 1),
    ],
)
def test_a_section_is_found_by_its_name(section, first, n):
    found = find_settings(section)
    assert found[0].key == first
    assert len(found) == n


def test_an_unknown_section_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean evaluate"):
        find_settings("evalute")


def test_settings_are_printed_with_default_unit_and_meaning(capsys):
    assert main(["settings", "tile.patch_px"]) == 0
    printed = capsys.readouterr().out
    assert printed == "tile.patch_px: 512 (px at target_mpp)\n    side of a patch (lecture)\n"
    assert main(["settings"]) == 0
    assert capsys.readouterr().out.count("\n") > 2 * len(list_settings()) - 20


def test_a_script_for_froc_holds_all_of_its_options(capsys):
    assert main(["init", "--for", "froc"]) == 0
    printed = capsys.readouterr().out
    assert "wsi-pipeline froc \\\n  --detections detections/" in printed
    for option in ("--definition camelyon16", "--rates 0.25,0.5,1,2,4,8", "--bootstrap 0"):
        assert f"#   {option}" in printed
