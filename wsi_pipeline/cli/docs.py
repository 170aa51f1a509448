"""The ``docs`` command: the pages of the documentation, which are installed with the program."""

import difflib
from pathlib import Path
from typing import Annotated

import typer

PACKAGE = Path(__file__).parents[1]


def docs(
    page: Annotated[
        str | None,
        typer.Argument(
            metavar="PAGE", help="E.g. tile. Default: list all pages.", show_default=False
        ),
    ] = None,
    path: Annotated[
        bool, typer.Option("--path", help="Print the path of the page, or of the folder.")
    ] = False,
) -> None:
    """List the pages of the documentation, or print one."""
    folder = find_docs()
    if page is None:
        print(folder if path else "\n".join(list_pages(folder)))
        return
    found = find_page(folder, page)
    print(found if path else found.read_text(encoding="utf-8"), end="\n" if path else "")


def find_docs() -> Path:
    """Find the folder of the pages: in the package, or next to it in a working copy."""
    installed = PACKAGE / "docs"
    return installed if installed.is_dir() else PACKAGE.parent / "docs"


def list_pages(folder: Path) -> list[str]:
    """Format one line per page: its name and its title."""
    titles = {
        name: page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for name, page in _pages(folder).items()
    }
    width = max(map(len, titles), default=0)
    return [f"{name:{width}}  {title}" for name, title in titles.items()]


def find_page(folder: Path, name: str) -> Path:
    """Find a page by its name.

    Raises
    ------
    BadParameter
        If there is no such page.
    """
    stem = name.removeprefix("docs/").removesuffix(".md")
    known = _pages(folder)
    if stem not in known:
        close = difflib.get_close_matches(stem, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "wsi-pipeline docs lists all pages"
        raise typer.BadParameter(f"no page {name!r}; {hint}")
    return known[stem]


def _pages(folder: Path) -> dict[str, Path]:
    """Find all pages, by name: of a tutorial, ``tutorials/slides``."""
    found = [*sorted(folder.glob("*.md")), *sorted(folder.glob("tutorials/*.md"))]
    return {page.relative_to(folder).with_suffix("").as_posix(): page for page in found}
