"""Hook of mkdocs: the repository's own files become pages, so that every link is one on a code host and in the site.

README.md is the first page, CHANGELOG.md and THIRD_PARTY.md are pages, and each file or folder outside ``docs`` that a
page links to is copied below ``source``: code as a page with colours, anything else as it is. A link to nothing stays
as it is, and ``mkdocs build --strict`` refuses it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

# Pages whose text stands elsewhere in the repository.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "THIRD_PARTY.md": "third-party.md"}
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yml": "yaml", ".ini": "ini"}
_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[^\S\n]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:|/")


def links(text: str) -> Iterator[re.Match[str]]:
    """Yield the relative links and pictures outside fenced code; group 2 is the path."""
    fences = [found.span() for found in _FENCE.finditer(text)]
    for found in _LINK.finditer(text):
        inside = any(begin <= found.start() < end for begin, end in fences)
        if not inside and not _OUTSIDE.match(found[2]):
            yield found


def place(target: str) -> str:
    """Return where the site has a file of the repository; both are paths with ``/``, relative to their roots."""
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if _in_docs(target) else f"source/{target}"


def _in_docs(target: str) -> bool:
    """Whether mkdocs has the file anyway: ``exclude_docs`` keeps this folder of code out."""
    return target.startswith("docs/") and not target.startswith("docs/site/")


def rewritten(text: str, origin: str, root: Path) -> str:
    """Return a page's text with links that mean the same in the site; ``origin`` is its path in the repository."""
    here = posixpath.dirname(page_of(root, origin))
    pieces, last = [], 0
    for found in links(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found[2]))
        if (root / target).exists():
            way = posixpath.relpath(page_of(root, target), here or ".")
            pieces += [text[last : found.start(2)], way]
            last = found.end(2)
    return "".join(pieces) + text[last:]


def page_of(root: Path, target: str) -> str:
    """``place``, with the name under which mkdocs knows a page that is made of a folder or of code."""
    path = place(target)
    if not path.startswith("source/"):
        return path
    if (root / target).is_dir():
        return f"{path}/index.md"
    return f"{path}.md" if PurePosixPath(path).suffix in _LANGUAGES else path


def sources(root: Path) -> set[str]:
    """Return every file and folder outside ``docs`` that a page links to, and what the folders hold."""
    found: set[str] = set()
    pages = [root / name for name in PAGES] + sorted((root / "docs").rglob("*.md"))
    for page in pages:
        origin = page.relative_to(root).as_posix()
        for link in links(page.read_text(encoding="utf-8")):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[2]))
            if (root / target).exists() and not _in_docs(target) and target not in PAGES:
                found.add(target)
    for folder in [target for target in found if (root / target).is_dir()]:
        found.update(path.relative_to(root).as_posix() for path in (root / folder).iterdir() if path.is_file())
    return found


def source_page(root: Path, target: str) -> str | None:
    """Return the Markdown of a file of code or of a folder; None for a file that is taken as it is."""
    path = root / target
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.is_file())
        lines = [f"- [{name}]({posixpath.basename(page_of(root, f'{target}/{name}'))})" for name in names]
        return "\n".join([f"# {target}", "", *lines, ""])
    if path.suffix not in _LANGUAGES:
        return None
    text = path.read_text(encoding="utf-8")
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"# {target}\n\n{ticks}{_LANGUAGES[path.suffix]}\n{text}\n{ticks}\n"


def origin_of(root: Path, name: str) -> str | None:
    """Return the file of the repository whose text a page has; None for what ``source_page`` made."""
    for origin, own in PAGES.items():
        if own == name:
            return origin
    if not name.startswith("source/"):
        return f"docs/{name}"
    origin = name.removeprefix("source/")
    return origin if (root / origin).is_file() else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files from outside ``docs``."""
    from mkdocs.structure.files import File, InclusionLevel

    root = _root(config)
    for origin, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=os.fspath(root / origin)))
    for target in sorted(sources(root)):
        name, made = page_of(root, target), source_page(root, target)
        given = {"abs_src_path": os.fspath(root / target)} if made is None else {"content": made}
        files.append(File.generated(config, name, inclusion=InclusionLevel.NOT_IN_NAV, **given))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    root = _root(config)
    origin = origin_of(root, page.file.src_uri)
    return markdown if origin is None else rewritten(markdown, origin, root)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent
