"""The documentation as a site: builds without a warning, every link in it leads somewhere, and it reads on a phone."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT
from tests.docs.test_api import SHOWN
from tests.helpers import browser

sys.path.insert(0, str(ROOT / "docs/site"))

import source_pages

# The Python that has the extra ``docs``: it may be another one, as mkdocs is of no use to the program.
PYTHON = os.environ.get("LARE2_DOCS_PYTHON", sys.executable)
NEEDED = ("docs", "runtime", "lare2_ref", "export", "benchmarks", "tests", "examples")


def missing():
    found = subprocess.run([PYTHON, "-c", "import mkdocs, material, mkdocstrings_handlers.python"], capture_output=True)
    if found.returncode == 0:
        return None
    return "no mkdocs: pip install '.[docs]', or name a Python that has it in LARE2_DOCS_PYTHON"


def build(root, out):
    line = [PYTHON, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out), "--config-file", f"{root}/mkdocs.yml"]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    env.pop("PYTHONPATH", None)
    return subprocess.run(line, capture_output=True, text=True, env=env, cwd=root, timeout=300, check=False)


@pytest.fixture(scope="module")
def site(once):
    reason = missing()
    if reason is not None:
        pytest.skip(reason)

    def make(folder):
        run = build(ROOT, folder / "site")
        assert run.returncode == 0, run.stderr
        assert "WARNING" not in run.stderr

    return once("documentation", make) / "site"


class Read(HTMLParser):
    """What a page links to, what it loads, and what may be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.identities = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.identities.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag != "a":
            self.loads += [given[name] for name in ("src", "href") if given.get(name)]


def test_every_link_in_it_leads_somewhere(site):
    pages = {path: Read(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    for path, page in pages.items():
        for target in [*page.links, *page.loads]:
            if re.match(r"https://", target) and target in page.links:
                continue
            assert not re.match(r"[a-z]+:|//", target), f"{path.name} loads {target}"
            place, _, anchor = target.partition("#")
            file = (path.parent / unquote(place)).resolve() if place else path
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), (path.name, target)
            if anchor and file in pages:
                assert unquote(anchor) in pages[file].identities | {"__top", ""}, (path.name, target)


def test_files_outside_the_pages_are_in_it(site):
    code = (site / "source/lare2_ref/lare.py.html").read_text()
    assert "LareExtractor" in code
    assert "parity.json" in {path.name for path in (site / "source/benchmarks/results").iterdir()}
    assert "sd1.json" in (site / "source/lare2_ref/models/sd_configs/index.html").read_text()
    assert "LaRE² at full size" in (site / "index.html").read_text()
    api = (site / "api.html").read_text()
    for name in (*SHOWN, "lare2_rt.Detector.load"):
        assert f'id="{name}"' in api


BROKEN = ("[x](../runtime/lare2_rt/nothing.py)", "[x](nothing.md)", "[x](output.md#nothing)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (BROKEN, ("'../runtime/lare2_rt/nothing.py'", "'nothing.md'", "'#nothing'")),
        (["::: lare2_rt.No"], ["lare2_rt.No"]),
    ],
    ids=["links", "api"],
)
def test_strict_finds_what_is_broken(site, tmp_path, lines, words):
    """Links to code become links within the site, and broken ones must not become good ones on the way."""
    for name in (*NEEDED, "README.md", "CHANGELOG.md", "THIRD_PARTY.md", "LICENSE", "mkdocs.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").unlink()
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    page = tmp_path / "docs/method.md"
    page.write_text("\n\n".join([page.read_text(), *lines]))
    run = build(tmp_path, tmp_path / "out")
    assert run.returncode != 0
    for word in words:
        assert word in run.stderr


@pytest.mark.parametrize(("width", "name"), [(390, "index"), (390, "cpu"), (390, "api"), (1280, "index")])
def test_it_reads_on_any_screen(site, width, name):
    reason = browser.missing()
    if reason is not None:
        pytest.skip(reason)
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    seen = browser.browse(
        site / f"{name}.html", [wide, broken, "document.querySelector('h1').textContent"], width=width
    )
    assert seen["values"][:2] == [True, []]
    assert seen["values"][2]
    assert seen["console"] == []


class TestLinks:
    """The hook that turns links, which needs no mkdocs."""

    @pytest.mark.parametrize(
        ("origin", "before", "after"),
        [
            ("README.md", "[a](docs/inputs.md#limits)", "[a](inputs.md#limits)"),
            ("README.md", "![a](docs/images/panel.jpg)", "![a](images/panel.jpg)"),
            ("README.md", "[a](CHANGELOG.md)", "[a](changelog.md)"),
            ("README.md", "[a](lare2_ref/lare.py)", "[a](source/lare2_ref/lare.py.md)"),
            ("docs/cpu.md", "[a](../lare2_ref/lare.py)", "[a](source/lare2_ref/lare.py.md)"),
            ("docs/cpu.md", "[a](../README.md) [b](gpu.md)", "[a](index.md) [b](gpu.md)"),
            ("docs/cpu.md", "[a](../lare2_ref/models/sd_configs)", "[a](source/lare2_ref/models/sd_configs/index.md)"),
            ("docs/cpu.md", "[a](../benchmarks/results/parity.json)", "[a](source/benchmarks/results/parity.json)"),
            ("examples/ATTRIBUTION.md", "[a](../README.md)", "[a](../../index.md)"),
            ("docs/evidence.md", "[a](site/pictures.py)", "[a](source/docs/site/pictures.py.md)"),
            ("docs/cpu.md", "[a](#rows) [b](https://x.org/README.md)", "[a](#rows) [b](https://x.org/README.md)"),
            ("docs/cpu.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
            ("docs/cpu.md", "[a](../nothing.py)", "[a](../nothing.py)"),
        ],
    )
    def test_rewriting(self, origin, before, after):
        assert source_pages.rewritten(before, origin, ROOT) == after

    def test_code_becomes_a_page_whatever_it_holds(self, tmp_path):
        (tmp_path / "x.py").write_text('"""\n````\n"""\n')
        text = source_pages.source_page(tmp_path, "x.py")
        assert text.startswith("# x.py\n\n`````python\n")
        (tmp_path / "x.json").write_text("{}")
        assert source_pages.source_page(tmp_path, "x.json") is None

    def test_every_outside_link_has_its_copy(self):
        found = source_pages.sources(ROOT)
        assert {"runtime/lare2_rt/engines/contract.py", "lare2_ref/models/sd_configs/sd1.json"} <= found
        assert not [name for name in found if name.startswith("docs/images") or not Path(ROOT, name).exists()]
