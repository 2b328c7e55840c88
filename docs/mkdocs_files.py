"""A hook of MkDocs: every page is known by its path in the repository.

So a link is right both in a checkout and on the site, and the specification, which lies beside
``docs``, is part of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("spec/*.md", "spec/v1/*.md", "samples/README.md", "samples/*/README.md", "C*.md")
"""Pages outside ``docs``."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Name the files of ``docs`` from the root of the repository, and add the pages beside it."""

    def named(path: str, dest_uri: str | None = None) -> File:
        return File(path, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=dest_uri)

    made = [
        named(f"docs/{file.src_uri}", file.dest_uri) if file.src_dir == config.docs_dir else file
        for file in files
    ]
    beside = sorted(path for pattern in BESIDE for path in ROOT.glob(pattern))
    return Files([*made, *(named(path.relative_to(ROOT).as_posix()) for path in beside)])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the link off what the repository has and the site has not, such as folders."""
    del config
    folder = posixpath.dirname(page.file.src_uri)

    def without_link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        is_on_site = files.get_file_from_path(target) is not None
        return found[0] if is_on_site or not (ROOT / target).exists() else found[1]

    return re.sub(r"\[([^\]]+)\]\(([^)#:]+)\)", without_link, markdown)
