"""The direction of imports (docs/architecture.md), read off the source, inside functions too.

The two packages offer names of rooms above them, lazily, by a table of strings. What a module
imports through such a name counts as an import from where the name is defined.
"""

import ast
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("tiling/**/*.py"), *ROOT.glob("wsi_pipeline/**/*.py")])

# From the roof down. A room imports only from floors below its own; on one floor, no room knows of
# another. A room is a folder, or a module next to the folders.
FLOORS = [
    {"wsi_pipeline.cli"},
    {"wsi_pipeline.planning", "wsi_pipeline.jobs", "wsi_pipeline.viewer"},
    {"wsi_pipeline.stages", "wsi_pipeline.baselines", "wsi_pipeline.demo"},
    {"wsi_pipeline.report", "wsi_pipeline.exports"},
    {"wsi_pipeline.evaluation"},
    {"wsi_pipeline.training", "wsi_pipeline.inference"}
    | {"wsi_pipeline.heatmaps", "wsi_pipeline.explain"},
    {"wsi_pipeline.cohort"},
    {"wsi_pipeline.models", "wsi_pipeline.run"},
    {"wsi_pipeline.config", "wsi_pipeline.layout"},
    {"wsi_pipeline.names", "wsi_pipeline.csv_files"},
    {"wsi_pipeline.contracts", "wsi_pipeline.errors"},
    {"wsi_pipeline"},
    {"tiling.footprint"},
    {"tiling.build"},
    {"tiling.attributes", "tiling.plan_picture"},
    {"tiling.tile_plan"},
    {"tiling.tissue"},
    {"tiling.annotation", "tiling.write_pixels"},
    {"tiling.same_content", "tiling.store"},
    {"tiling.slide", "tiling.blocks", "tiling.overview", "tiling.patches", "tiling.coords_hdf5"}
    | {"tiling.open_slides", "tiling.store_files"},
    {"tiling.listing"},
    {"tiling.dataset", "tiling.geometry", "tiling.grid", "tiling.hdf5", "tiling.polygons"}
    | {"tiling.qc"}
    | {"tiling.readers", "tiling.resample", "tiling.shards", "tiling.zarr_arrays"},
    {"tiling.components", "tiling.contracts", "tiling.files", "tiling.strips"} | {"tiling.wording"},
    {"tiling.urls", "tiling.processes"},
    {"tiling.errors"},
    {"tiling.threads"},
    {"tiling"},
    {"tiling.lazy"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def read_sources() -> dict[str, str]:
    """Read every module: its dotted name, and its source."""
    found = {}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


SOURCES = read_sources()
ROOMS = {f"{path.parent.parent.name}.{path.parent.name}" for path in ROOT.glob("*/*/__init__.py")}


def room_of(name: str) -> str | None:
    """Give the room of a module, or of a name in one; None of other packages."""
    parts = name.split(".")
    if parts[0] not in {"tiling", "wsi_pipeline"}:
        return None
    two = ".".join(parts[:2])
    return two if two in ROOMS or two in SOURCES else parts[0]


PACKAGES = ("tiling", "wsi_pipeline")
DEFINED_IN = {  # dotted names that the packages offer -> where they are defined
    f"{package}.{name}": f"{module}.{name}"
    for package in PACKAGES
    for name, module in import_module(package).MODULE_BY_NAME.items()
}


def imports_of(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {DEFINED_IN.get(name, name) for name in names}
    return found


IMPORTS = {name: imports_of(source) for name, source in SOURCES.items()}


def find_upward(imports: Mapping[str, set[str]]) -> list[str]:
    """List imports that do not point down."""
    found = []
    for name, names in imports.items():
        own = room_of(name)
        for imported in sorted(names):
            other = room_of(imported)
            if own is None or other in (None, own):
                continue
            if FLOOR[other] <= FLOOR[own]:
                found.append(f"{name} imports {imported}")
    return found


def test_every_room_is_on_a_floor():
    rooms = {room_of(name) for name in SOURCES}
    assert rooms == set(FLOOR)


def test_imports_point_down():
    assert not find_upward(IMPORTS)


def modules_imported(name: str) -> set[str]:
    """List the modules of both packages that a module imports, other than itself."""
    found = set()
    for imported in IMPORTS[name]:
        while imported and imported not in SOURCES:
            imported = imported.rpartition(".")[0]
        found.add(imported)
    return found - {"", name, *PACKAGES}


def test_no_modules_import_each_other():
    TopologicalSorter({name: modules_imported(name) for name in SOURCES}).prepare()


def test_the_page_on_the_architecture_names_every_folder_and_module_at_the_root():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.split("```")[1]
    for package in PACKAGES:
        described = re.split(r"^(?=\w)", tree.partition(f"{package}/")[2], flags=re.MULTILINE)[0]
        names = {path.name for path in (ROOT / package).glob("*.py")}
        names |= {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
        assert not {name for name in names if f" {name} " not in described.replace("\n", " ")}


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("wsi_pipeline.evaluation.froc", "from wsi_pipeline.report import build"),
        ("wsi_pipeline.run.progress", "from wsi_pipeline.training import train_model"),
        ("wsi_pipeline.heatmaps.nms", "from wsi_pipeline.inference import predict_store"),
        ("wsi_pipeline.report.page", "import wsi_pipeline.cli.app"),
        ("wsi_pipeline.errors", "from wsi_pipeline.layout import RunFolder"),
        ("tiling.grid", "from tiling.build import tile_slide"),
        ("tiling.readers.common", "from tiling.slide import open_slide"),
        ("tiling.files", "from wsi_pipeline.names import check_name"),
        ("wsi_pipeline.heatmaps.nms", "from wsi_pipeline import predict"),
        ("tiling.grid", "from tiling import tile_slide"),
        ("wsi_pipeline", "from wsi_pipeline.inference import predict_store"),
        ("tiling", "from tiling.slide import open_slide"),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["at-the-top", "in-a-function"])
def test_a_planted_import_is_found(name, planted, inside):
    """The test before this one let upward imports pass."""
    line = f"\ndef f():\n    {planted}\n" if inside else f"\n{planted}\n"
    assert len(find_upward({name: imports_of(SOURCES[name] + line)})) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_lazy_names_are_those_that_type_checkers_see(package):
    module = import_module(package)
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    shown = {alias.name for node in imports for alias in node.names}

    assert sorted(shown) == sorted(module.__all__) == sorted(module.MODULE_BY_NAME)
    assert all(name in dir(module) for name in module.__all__)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_reached_through_a_whole_package(name):
    """`import wsi_pipeline` and its lazy names would hide what is used from the tests above."""
    assert not IMPORTS[name] & set(PACKAGES)


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("tiling")])
def test_tiling_knows_nothing_of_models(name):
    roots = {imported.split(".")[0] for imported in IMPORTS[name]}
    assert not roots & {"torch", "wsi_pipeline"}


# The types and errors of xml.etree may be named; its parsers, which expand entities, may not.
UNSAFE = {"pickle", "marshal", "shelve", "xml.sax", "xml.dom.minidom"} | {
    f"xml.etree.ElementTree.{name}" for name in ("parse", "fromstring", "iterparse", "XMLParser")
}


@pytest.mark.parametrize("name", SOURCES)
def test_unsafe_readers_are_not_imported(name):
    tree = ast.parse(SOURCES[name])
    named = IMPORTS[name] | {
        n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module
    }
    whole = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not named & UNSAFE
    assert not whole & {"xml.etree.ElementTree", "xml.etree"}
