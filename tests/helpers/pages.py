"""The pages of the documentation as a reader sees them: their links, their headings, their commands."""

import re
import shlex
from itertools import pairwise

from markdown_it import MarkdownIt

from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "THIRD_PARTY.md", "examples/ATTRIBUTION.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
_PARSER = MarkdownIt("commonmark").enable("table")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def tokens(text):
    for token in _PARSER.parse(text):
        yield token
        yield from token.children or ()


def links(text):
    """Targets of all links and pictures; what stands in code is none."""
    kinds = ("link_open", "image")
    return [token.attrs.get("href") or token.attrs.get("src") for token in tokens(text) if token.type in kinds]


def anchors(text):
    """What ``#...`` may name: headings as code hosts turn them into anchors, repeated ones numbered."""
    found, stream = [], list(_PARSER.parse(text))
    for opening, inline in pairwise(stream):
        if opening.type == "heading_open":
            plain = "".join(child.content for child in inline.children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", plain.lower().strip()).replace(" ", "-")
            repeated = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
            found.append(f"{slug}-{repeated}" if repeated else slug)
    return found


def blocks(text, language):
    """Contents of the fenced blocks in a language."""
    return [token.content for token in tokens(text) if token.type == "fence" and token.info.strip() == language]


def commands(text):
    """The words of every command of the ``bash`` blocks: parts of pipelines one by one, redirections left out."""
    for block in blocks(text, "bash"):
        for line in block.splitlines():
            for part in re.split(r"\s(?:&&|\|)\s", line):
                words = shlex.split(re.sub(r"\s[<>]\s*\S+", "", part), comments=True)
                while words and re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
                    del words[0]
                if words:
                    yield words


def named(text):
    """The same of commands that are named within sentences."""
    for token in tokens(text):
        if token.type == "code_inline" and token.content.startswith("lare2-rt "):
            yield [word.split("|")[0] for word in shlex.split(token.content)]
