"""The direction of imports (docs/architecture.md), read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("tiling/**/*.py"), *ROOT.glob("wsi_pipeline/**/*.py")])

# A module may import from its own layer and those to its right, at module level or inside.
LAYERS = [
    {"cli", "cli_baselines", "cli_export", "cli_interrupt", "cli_options", "interrupts"},
    {"collect", "doctor", "planning", "whole_run"},
    {"stages", "export_stage"},
    {"image_stages"},
    {"runner"},
    {"work"},
    {"training", "inference", "evaluation"}
    | {"heatmaps"}
    | {"explain", "exports", "images", "baselines", "baseline_features"}
    | {"report", "cohorts", "cluster", "progress", "process_pool"}
    | {"label_audit", "audit_pictures"},
    {"models", "data", "sampling", "augment", "preprocess", "checkpoint", "devices", "scores"},
    {"slide_contents"},
    {"listing", "manifest", "splits", "runfolder", "marks", "config", "yaml_files"},
    {"contracts", "settings", "errors", "versions", "names", "csv_files"},
]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if "tiling" in p.parts], ids=lambda p: p.name)
def test_tiling_knows_nothing_of_models(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & {"torch", "wsi_pipeline"}


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    if parts[0] != "wsi_pipeline" or len(parts) < 2:
        return None
    return next((i for i, layer in enumerate(LAYERS) if parts[1] in layer), None)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if "wsi_pipeline" in p.parts], ids=lambda p: p.name
)
def test_imports_point_down(path):
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        assert path.name == "__init__.py", f"{path.name} stands in no layer; name it in LAYERS"
        return
    for name in imports_of(path):
        other = layer_of(name)
        assert other is None or other >= own, f"{path.name} imports {name}, which is above it"


# The types and errors of xml.etree may be named; its parsers, which expand entities, may not.
UNSAFE = {"pickle", "marshal", "shelve", "xml.sax", "xml.dom.minidom"} | {
    f"xml.etree.ElementTree.{name}" for name in ("parse", "fromstring", "iterparse", "XMLParser")
}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_unsafe_readers_are_not_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    whole = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not imports_of(path) & UNSAFE
    assert not whole & {"xml.etree.ElementTree", "xml.etree"}
