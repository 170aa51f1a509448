"""The documentation as a site: ``make docs``.

The index is README.md, as on GitHub. Its tables are the table of contents: each page linked in the
table under a heading belongs to that group, and Sphinx refuses a page that is in no table.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository")  # None: links to its files are downloads

project = PROJECT["name"]
version = release = PROJECT["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = False

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings contain types and shapes
napoleon_google_docstring = False
nitpick_ignore_regex = [("py:class", ".*")]  # types in docstrings are prose: (H, W) float32

LINK = re.compile(r"\]\(([\w/-]+)\.(?:md|rst)\)")


def add_contents(_app: Sphinx, name: str, content: list[str]) -> None:
    """Add a table of contents for each heading of the index, from the links below it."""
    if name != root_doc:
        return
    for group in re.split(r"^## ", content[0], flags=re.MULTILINE)[1:]:
        caption, _, text = group.partition("\n")
        pages = "\n".join(dict.fromkeys(LINK.findall(text)))
        content[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def link_to_repository(_app: Sphinx, name: str, content: list[str]) -> None:
    """Rewrite links to files outside docs/ to the repository."""
    if REPOSITORY is None:
        return
    folder = (DOCS / name).parent

    def rewrite(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve().relative_to(ROOT)
        return f"]({REPOSITORY}/blob/main/{path.as_posix()})"

    content[0] = re.sub(r"\]\(((?:\.\./)+(?!docs)[^)#\s]+)\)", rewrite, content[0])


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Find a documented name that a docstring cites without its module, as in ``Raises``."""
    found = env.domains.python_domain.find_obj(env, "", None, node["reftarget"], None, 1)
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def write_start_page(app: Sphinx, error: Exception | None) -> None:
    """Write index.html, which browsers open first."""
    if error is None and app.builder.name == "html":
        page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the functions above to the build."""
    app.connect("source-read", add_contents)
    app.connect("source-read", link_to_repository)
    app.connect("missing-reference", resolve_short_name)
    app.connect("build-finished", write_start_page)
