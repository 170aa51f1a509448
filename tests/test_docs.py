"""The documentation is correct: links, command lines, settings and their defaults."""

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

import wsi_pipeline
from tiling.annotation.formats import FORMATS
from tiling.readers import READERS
from wsi_pipeline.cli.app import app
from wsi_pipeline.cli.examples import GUIDES
from wsi_pipeline.config.manual import list_settings, markdown_row, settings_of
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.settings import RECIPES
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.evaluation import metrics
from wsi_pipeline.explain import METHODS, load_method

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README.md"), *ROOT.glob("CHANGELOG.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NOT_TYPED = {"text", "yaml", "json", "csv", "python", "xml"}  # blocks that are not shell commands
SEPARATORS = {"&&", "||", "|", ";", "&", ">", "2>"}

page_ids = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ------------------------------------------------------------ links


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@page_ids
def test_relative_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name}: {target}"


def test_the_reference_has_every_public_name():
    pages = "".join(map(read, ROOT.glob("docs/api/*.rst")))
    listed = re.findall(r":: (?:\w+\.)+(\w+)$", pages, re.MULTILINE)
    assert set(wsi_pipeline.__all__) - {"explain"} <= set(listed)


def test_the_gallery_has_every_picture():
    shown = set(LINK.findall(read(ROOT / "docs/gallery.md")))
    of_reports = {path.name for path in ROOT.glob("docs/images/report-*")}  # on its page
    pictures = {path.name for path in ROOT.glob("docs/images/*")} - of_reports
    assert {f"images/{name}" for name in pictures} <= shown


# ------------------------------------------------------------ command lines


def split_commands(line: str) -> Iterator[list[str]]:
    """List the commands of a shell line, also those in quotes (``sbatch --wrap``)."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in SEPARATORS:
            yield words
            words = []
        elif " " in word and "wsi-pipeline " in word:
            yield from split_commands(word)
        else:
            words.append(word)
    yield words


def our_commands(page: Path) -> Iterator[list[str]]:
    for language, block in FENCE.findall(read(page)):
        if language in NOT_TYPED:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if "wsi-pipeline" not in line:
                continue
            for words in split_commands(line.strip().removeprefix("$ ")):
                at = [i for i, word in enumerate(words) if Path(word).name == "wsi-pipeline"]
                if at:
                    yield words[at[0] + 1 :]


def parse(arguments: list[str]) -> None:
    """Parse a command line as the program would, and run nothing."""
    program: Any = get_command(app)
    name, *rest = arguments or ["--help"]
    if name.startswith("-"):
        known = {option for parameter in program.params for option in parameter.opts}
        assert name in known | {"--help", "-h"}, f"no option {name}"
        return
    assert name in program.commands, f"no command {name}"
    with contextlib.suppress(typer.Exit):  # --help ends here
        program.commands[name].make_context(f"wsi-pipeline {name}", rest)


@page_ids
def test_commands_and_options_exist(page, capsys):
    for arguments in our_commands(page):
        try:
            parse(arguments)
        except Exception as error:
            message = getattr(error, "message", str(error))
            pytest.fail(f"{page.name}: wsi-pipeline {shlex.join(arguments)}: {message}")


@pytest.mark.parametrize("name", GUIDES)
def test_the_help_of_a_command_ends_with_examples_and_its_page(name, capsys):
    guide = GUIDES[name]
    for example in guide.examples:
        words = next(split_commands(example))
        assert words[0] == name
        parse(words)
    assert (ROOT / "docs" / guide.page).is_file()
    assert set(guide.sections) <= {field.name for field in dataclasses.fields(Config)}
    with pytest.raises(SystemExit):
        get_command(app)([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())  # lines are broken to fit the terminal
    assert all(f"wsi-pipeline {example}" in printed for example in guide.examples)
    assert f"Manual: docs/{guide.page} (wsi-pipeline docs {guide.page[:-3]})" in printed


def test_every_command_has_examples():
    assert set(GUIDES) == set(get_command(app).commands)


def test_a_wrong_command_line_is_noticed():
    assert list(split_commands("sbatch --wrap 'wsi-pipeline tile x --out y' && ls")) == [
        ["wsi-pipeline", "tile", "x", "--out", "y"],
        ["sbatch", "--wrap"],
        ["ls"],
    ]
    for wrong in (["fly"], ["tile", "x", "--out", "y", "--colour", "red"], ["predict"]):
        with pytest.raises(Exception, match=r"no command fly|colour|run"):
            parse(wrong)


def test_every_make_target_that_is_named_exists():
    """The marker of the slow tests named one that had never been."""
    targets = set(re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    for page in (*PAGES, ROOT / "pyproject.toml", ROOT / ".ci/run"):
        named = re.findall(r"(?:`|^|by |&& )make ([a-z-]+)", read(page), re.MULTILINE)
        assert set(named) <= targets, page.name


@pytest.mark.parametrize("folder", ["tiling", "wsi_pipeline", "benchmarks"])
def test_pages_that_sources_cite_are_here(folder):
    """They cited a page that was never part of the repository."""
    for source in sorted((ROOT / folder).rglob("*.py")):
        for page in re.findall(r"\b(?:docs|specs)/[\w/]+\.md", read(source)):
            assert (ROOT / page).is_file(), f"{source.relative_to(ROOT)} cites {page}"


# ------------------------------------------------------------ settings


def table_rows(text: str, n_cells: int) -> dict[str, Any]:
    """Read the tables whose first cell is a key and whose second is its default, as YAML."""
    rows: dict[str, Any] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        key = re.fullmatch(r"`([^`]+)`", cells[0])
        if line.startswith("| `") and len(cells) == n_cells and key:
            assert key[1] not in rows, f"{key[1]} is listed twice"
            rows[key[1]] = yaml.safe_load(cells[1].strip("`"))
    return rows


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found |= {prefix + key: value} if inner is None else inner
    return found


def test_the_tables_of_settings_are_those_of_the_code():
    """Where it fails: python docs/make_config_tables.py."""
    page = read(ROOT / "docs" / "config.md").splitlines()
    n_bars = {line: len(re.findall(r"(?<!\\)\|", line)) for line in page}
    rows = [line for line in page if line.startswith("| `") and n_bars[line] == 5]
    assert sorted(rows) == sorted(map(markdown_row, list_settings()))


def test_every_setting_has_a_meaning_or_a_unit():
    assert [s.key for s in list_settings() if not s.meaning and not s.unit] == []


def test_every_explanation_method_is_described_with_its_settings():
    """What its map is, its settings with their defaults, and a section with a source."""
    page = read(ROOT / "docs" / "explain.md")
    methods = {name: load_method(name) for name in METHODS}
    rows = [f"| `{name}` | {summary} |" for name, summary in METHODS.items()]
    assert [row for row in rows if row not in page] == []
    assert table_rows(page, n_cells=3) == {
        f"{name}.{key}": default
        for name, method in methods.items()
        for key, default in settings_of(method.settings).items()
    }
    titles = {name: f"\n## {name}\n" for name in METHODS}
    for name, title in titles.items():
        section = page.partition(title)[2].partition("\n## ")[0]
        assert "*Misleads*" in section, f"{name} has no section that says when it misleads"
        cited = re.findall(r"\[([^\]]+)\][^(]", section)
        assert any(f"- **[{source}]**" in read(ROOT / "docs/references.md") for source in cited), (
            name
        )


def test_recipes_are_listed():
    tables = ((("patchnet",), ("precision_patchnet",), ("cam", "vgg11")), (("protopnet",),))
    section = read(ROOT / "docs" / "config.md").partition("### Recipes")[2].partition("\n## ")[0]
    for columns in tables:
        for number, models in enumerate(columns, start=1):
            listed = {}
            for line in section.splitlines():
                cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
                if line.startswith("| `") and len(cells) == len(columns) + 2:
                    listed[cells[0]] = yaml.safe_load(cells[number])
            for model in models:
                assert listed == flatten(RECIPES[model]), model
    assert {model for columns in tables for models in columns for model in models} == set(RECIPES)


@pytest.mark.parametrize(("page", "known"), [("readers", READERS), ("labels", FORMATS)])
def test_each_reader_and_annotation_format_has_a_row(page, known):
    rows = read(ROOT / f"docs/{page}.md").splitlines()
    titles = [one.title for one in known]
    assert [t for t in titles if not any(row.startswith(f"| {t} |") for row in rows)] == []


def test_the_table_of_stages_is_the_list():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = [f"| `{stage.name}` | {stage.summary} | {stage.unit} |" for stage in STAGES]
    assert "\n".join(rows) in page


def metric_rows() -> list[str]:
    """Give the table of metrics as docs/evaluate.md has it."""
    listed: list[metrics.Metric] = [*metrics.SHARES, *metrics.RANKINGS]
    return [
        f"| `{m.name}` | {m.meaning} | {', '.join(m.sections)} | {m.interval_method} "
        f"| {', '.join(m.compared) or '-'} |"
        for m in listed
    ]


def test_the_table_of_metrics_is_the_list():
    page = read(ROOT / "docs/evaluate.md").partition("## The metrics")[2].partition("\n## ")[0]
    assert [line for line in page.splitlines() if line.startswith("| `")] == metric_rows()
