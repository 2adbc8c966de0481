"""Every page: links and anchors resolve, commands are taken by the programs, and what tables list is what there is."""

import ast
import functools
import re
import tomllib
from importlib import import_module

import pytest
import typer.main

from lare2_export.cli import app as build_app
from lare2_ref.evaluate import app as reference_app
from lare2_ref.train.cli import app as train_app
from lare2_rt.bundle.manifest import Manifest
from lare2_rt.cli.app import app
from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine, use_engines
from tests.helpers.pages import PAGES, anchors, blocks, commands, links, name_of, named

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
TYPER = {
    "python -m lare2_ref.train": train_app,
    "-m lare2_ref.train": train_app,
    "python -m lare2_ref.evaluate": reference_app,
    "python export/build_engines.py": build_app,
}
# Options of other programs that pages speak of.
FOREIGN = {
    "--nproc_per_node",
    "--cpus",
    "--force-reinstall",
    "--no-deps",
    "--no-sandbox",
    "--upgrade",
    "--strict",
    "--help",
    "--accuracy",  # docs/cpu.md says that there is none
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    for target in links(page.read_text(encoding="utf-8")):
        if re.match(r"https://[\w.-]+/", target):
            continue
        assert ":" not in target, f"{target} is no https address"
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert place.is_relative_to(ROOT), target
        if anchor:
            assert place.suffix == ".md", f"{target}: only headings of pages are anchors here and in the site"
            assert anchor in anchors(place.read_text(encoding="utf-8")), target


def test_what_the_link_test_sees():
    """It can fail: links in code are none, headings with code and signs have the anchors that hosts give them."""
    text = (
        "# `a --b`: c, d!\n\n## é ü\n\n## é ü\n\n[x](y.md#z) ![p](q.png)\n\n"
        "```\n[n](o)\n```\n`[n](o)`\n\n|a|\n|-|\n|[t](u)|\n"
    )
    assert anchors(text) == ["a---b-c-d", "é-ü", "é-ü-1"]
    assert links(text) == ["y.md#z", "q.png", "u"]


def test_the_site_has_every_page():
    listed = re.findall(r": ([\w./-]+\.md)$", read("mkdocs.yml"), re.MULTILINE)
    assert len(set(listed)) == len(listed)
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("**/*.md")}
    assert set(listed) - own == {"index.md", "changelog.md", "third-party.md"}, "the pages that mkdocs makes of others"
    assert own <= set(listed), "add the page to nav in mkdocs.yml"


def command_of(words):
    """The click command that takes these words, and the rest of them; None where it is not ours."""
    line = " ".join(words)
    if words[0] == "lare2-rt":
        group = typer.main.get_command(app)
        at = next((i for i, word in enumerate(words[1:], 1) if not word.startswith("-")), len(words))
        command, rest = (group.commands[words[at]], words[at + 1 :]) if at < len(words) else (group, words[1:])
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        return command, rest
    for start, program in TYPER.items():
        if line.startswith(start) or (words[0] == "torchrun" and f" {start} " in line and start.startswith("-m")):
            return typer.main.get_command(program), words[words.index(start.split()[-1]) + 1 :]
    return None


def benchmark_files(module):
    """The sources of a module of benchmarks that can be run, and what all of them share."""
    path = ROOT.joinpath(*module.split("."))
    own = [*path.glob("*.py")] if (path / "__main__.py").is_file() else [path.with_suffix(".py")]
    return [*own, *(ROOT / "benchmarks/common").glob("*.py")]


@functools.cache
def benchmark_options(module):
    """Options that a benchmark adds with argparse."""
    found = set()
    for path in benchmark_files(module):
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node, "func", None)
            if getattr(called, "attr", "") == "add_argument" or getattr(called, "id", "") == "add":
                found.update(part.value for part in node.args if isinstance(part, ast.Constant))
    return found


def check(words):
    """A command is taken: by its own parser, or by what is known of pip's extras, pytest's markers and benchmarks."""
    found = command_of(words)
    if found is not None:
        command, rest = found
        # Fails for an option that does not exist, a value of the wrong type, and an argument too many or missing.
        command.make_context("test", [word for word in rest if word != "…"])
    elif words[0] == "pip":
        ours = [found for word in words if (found := re.fullmatch(r"\.\[([\w,-]+)\]", word))]
        assert ours, words
        assert {extra for found in ours for extra in found[1].split(",")} <= EXTRAS.keys(), words
    elif words[0] == "pytest":
        markers = {line.split(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
        assert words[1:2] in ([], ["-m"])
        assert set(words[2:]) <= markers
    elif words[0] == "python":
        assert words[1] == "-m", words
        assert benchmark_files(words[2])[0].is_file(), words
        assert {word for word in words[3:] if word.startswith("--")} <= benchmark_options(words[2]), words
    else:
        assert words[0] in ("rsync", "find", "mkdocs"), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_taken(page):
    text = page.read_text(encoding="utf-8")
    for words in commands(text):
        check(words)
    for words in named(text):
        command, rest = command_of(words) or (None, [])
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= options, words


@pytest.mark.parametrize(
    "line",
    [
        "lare2-rt infer --heatmaps x",
        "lare2-rt inferr",
        "lare2-rt infer a.jpg --threads many",
        "python -m benchmarks.parity --picture x",
        "pip install '.[gpus]'",
        "pip install '.[gpus]' polygraphy",
        "pip install polygraphy",
        "pip install 'lare2-rt[cpu]'",
        "python -m benchmarks.nothing",
        "python benchmarks/parity.py",
        "pytest -m fast",
        "make",
    ],
)
def test_wrong_commands_are_found(line):
    """The test above can fail."""
    text = f"```bash\nfind x | {line} < y  # z\n```\n"
    _, words = commands(text)
    # Which click raises it depends on typer's version.
    with pytest.raises(Exception) as caught:
        check(words)
    kinds = {kind.__name__ for kind in type(caught.value).__mro__}
    assert kinds & {"AssertionError", "KeyError", "UsageError"}, kinds


@pytest.mark.slow
@pytest.mark.parametrize("page", ["engines", "bundle-format"])
def test_commands_run(page, monkeypatch, tmp_path, rocket):
    """Those of pages without a test of their own, on the embedded bundle, in the order of the page."""
    from lare2_rt.engines import registry
    from tests.helpers.image_sets import here

    absent = FakeEngine(name="openvino", compiled=True, why_not="openvino is not installed")
    use_engines(monkeypatch, registry.ENGINES[0], absent)
    run = here(monkeypatch, tmp_path)
    (tmp_path / "photo.jpg").symlink_to(rocket)
    found = list(commands(read(f"docs/{page}.md")))
    assert len(found) >= 2
    for program, *arguments in found:
        assert program == "lare2-rt"
        answer = run(*arguments)
        assert answer.returncode == 0, (arguments, answer.stderr)


def known_options():
    for program in (*TYPER.values(), app):
        command = typer.main.get_command(program)
        for one in getattr(command, "commands", {"": command}).values():
            for each in getattr(one, "commands", {"": one}).values():
                for parameter in each.params:
                    yield from (*parameter.opts, *parameter.secondary_opts)
    for path in (ROOT / "benchmarks").rglob("*.py"):
        module = path.parent if path.name == "__main__.py" else path.with_suffix("")
        yield from benchmark_options(".".join(module.relative_to(ROOT).parts))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_options_in_the_text_exist(page):
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*[a-z]", re.sub(r"<!--|-->", "", page.read_text("utf-8"))))
    assert shown <= {*known_options(), *FOREIGN, "--version"}


def sentences():
    """Every text in the sources, with … where something is filled in."""

    def text(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        return ""

    for folder in ("runtime", "lare2_ref", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            yield from filter(None, map(text, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))


def test_messages_are_those_of_the_code():
    shown = re.findall(r"^\| `([^`]+)` \|", read("docs/errors.md"), re.MULTILINE)
    assert len(shown) > 40
    everything = list(dict.fromkeys(sentences()))
    for message in shown:
        pattern = re.compile(".*?".join(map(re.escape, message.split("…"))))
        assert any(pattern.search(text) for text in everything), message


def fields(model):
    """Names of a pydantic model's fields, and of those of the models in them."""
    for name, field in model.model_fields.items():
        yield name
        for inner in re.findall(r"lare2_rt\.bundle\.manifest\.(\w+)", str(field.annotation)):
            kind = getattr(import_module("lare2_rt.bundle.manifest"), inner)
            if hasattr(kind, "model_fields"):
                yield from fields(kind)


def test_bundle_format_names_every_field_and_file(embedded):
    page = read("docs/bundle-format.md")
    names = set(fields(Manifest))
    assert {"alpha_bar", "temperature", "licence", "component_key", "dtype", "padding"} <= names
    for name in names:
        assert f"`{name}`" in page, name
    rows = re.findall(r"^\| `([^`]+)` \|", page.split("## Files")[1].split("##")[0], re.MULTILINE)
    parts = {"COMPONENT": r"\w+", "bB": r"b\d+", "PRECISION": r"fp\d+", "PROFILE": "(portable|native)"}
    patterns = [
        re.compile(re.sub("|".join(parts), lambda found: parts[found[0]], row.replace(".", r"\."))) for row in rows
    ]
    for path in embedded.iterdir():
        assert any(pattern.fullmatch(path.name) for pattern in patterns), path.name


def test_engines_are_those_of_the_code():
    from lare2_rt.engines.registry import ENGINES
    from lare2_rt.engines.self_check import HALF_TOLERANCES, TOLERANCES

    page = read("docs/engines.md")
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \| (.*?) \| (fp\d+) \| (.+?) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == [entry.name for entry in ENGINES]
    for entry, (_, what, install, precision, images) in zip(ENGINES, rows, strict=True):
        assert install == f"`pip install '.[{entry.extra}]'`"
        assert precision == {"cpu": "fp32", "cuda": "fp16"}[entry.device]
        assert ("not run on a GPU yet" in what) == (entry.device == "cuda")
        assert entry.load().position_stable == (images != "1")
    assert {limit for limit, _ in TOLERANCES.values()} == {1e-3}
    assert {limit for limit, _ in HALF_TOLERANCES.values()} == {1e-2}


def test_architecture_is_that_of_the_code():
    page = read("docs/architecture.md")
    packages = re.findall(r"^\| `(\w+)` \|", page.split("## The runtime")[1].split("\n## ")[0], re.MULTILINE)
    layers = next(c["layers"] for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    assert packages == layers
    files = re.findall(r"`([\w/]+\.py)`", page)
    assert len(files) > 10
    for file in files:
        assert (ROOT / file).is_file() or (ROOT / "runtime/lare2_rt" / file).is_file(), file


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_installs_are_those_of_a_checkout(page):
    """The project is on no package index: its extras are those of a folder."""
    assert "lare2-rt[" not in page.read_text(encoding="utf-8")


def test_the_table_of_false_positives_is_arithmetic():
    rows = re.findall(r"^\| 1 in (\d+) \| (.*) \|$", read("docs/scores.md"), re.MULTILINE)
    assert [int(row[0]) for row in rows] == [2, 10, 100, 1000]
    for total, cells in rows:
        share = 1 / int(total)
        rates = ((0.01, 1), (0.01, 0.5), (0.001, 0.5), (0.05, 1))
        for cell, (rate, found) in zip(cells.split(" | "), rates, strict=True):
            real = 100 * (1 - share) * rate / ((1 - share) * rate + share * found)
            assert cell == (f"{real:.0f} %" if real > 0.95 else f"{real:.1f} %")


def test_the_citation_is_of_this_version():
    import yaml

    from lare2_rt import __version__

    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == __version__
    # Of the code, which is what is cited; the embedded weights have another beside it.
    assert citation["license"] == PROJECT["project"]["license"].split(" AND ")[0]
    assert {"cff-version", "message", "title", "authors", "preferred-citation"} <= citation.keys()
    assert {"type", "title", "authors", "year", "url"} <= citation["preferred-citation"].keys()


def test_numbers_of_the_method():
    """The noise schedule of Stable Diffusion: linear in the square root of beta."""
    import numpy as np

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert f"ᾱ = {np.cumprod(1 - betas)[200]:.4f}." in read("docs/method.md")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lists_are_lists_in_every_markdown(page):
    """Some take a list for text unless a blank line stands before it."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(text, "bash") + blocks(text, "text") + blocks(text, "python"):
        text = text.replace(block, "")
    assert not re.search(r"^(?!- |  |#|\d+\. )\S.*\n(- |\d+\. )", text, re.MULTILINE)
