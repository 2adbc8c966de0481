"""The commands in docs/training.md and docs/evaluation.md exist with every option that they are shown with."""

import re
import shlex

import pytest
import typer.main
from conftest import ROOT

from lare2_export.cli import app as build_app
from lare2_ref.evaluate import app as reference_app
from lare2_ref.train.cli import app as train_app
from lare2_rt.cli.app import app

PAGES = ("training", "evaluation")
PROGRAMS = {
    "python -m lare2_ref.train": train_app,
    "-m lare2_ref.train": train_app,
    "python -m lare2_ref.evaluate": reference_app,
    "python export/build_engines.py": build_app,
}


def commands(page):
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from block.strip().splitlines()


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page)])
def test_command_exists(line):
    if line.startswith("pip install"):
        return
    if line.startswith("lare2-rt "):
        name, *words = shlex.split(line)[1:]
        command = typer.main.get_command(app).commands[name]
    else:
        start = next(start for start in PROGRAMS if line.startswith(start))
        words = shlex.split(line.removeprefix(start))
        command = typer.main.get_command(PROGRAMS[start])
    # Parsing fails for an option that does not exist, a value of the wrong type, and an argument too many or missing.
    command.make_context("test", list(words))


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    known = {"--nproc_per_node"}  # torchrun's
    for program in (*PROGRAMS.values(), app):
        command = typer.main.get_command(program)
        for sub in getattr(command, "commands", {"": command}).values():
            for parameter in sub.params:
                known.update((*parameter.opts, *parameter.secondary_opts))
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", text))
    assert shown
    assert shown <= known


def test_page_lists_every_corruption():
    from lare2_rt.evaluation.corruptions import CORRUPTIONS

    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    table = text.split("## Corrupted images")[1].split("\n## ")[0]
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line) if line.startswith("| `")]
    assert named == list(CORRUPTIONS)
