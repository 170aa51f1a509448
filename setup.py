"""Puts the pages of docs/ into the wheel, for ``wsi-pipeline docs``; see pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PAGES = ("*.md", "tutorials/*.md", "images/*")


class BuildWithDocs(build_py):
    """Copies the pages next to the modules; an editable installation finds them where they are."""

    def run(self) -> None:
        """Copy modules and pages."""
        super().run()
        if self.editable_mode:
            return
        source = Path(__file__).parent / "docs"
        target = Path(self.build_lib) / "wsi_pipeline" / "docs"
        for pattern in PAGES:
            for page in source.glob(pattern):
                copy = target / page.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(page), str(copy))


setup(cmdclass={"build_py": BuildWithDocs})
