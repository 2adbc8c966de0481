"""What the README says is true: links resolve, commands print what is shown."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def normal(text):
    """Versions, thread counts and milliseconds differ between machines; everything else may not."""
    text = re.sub(r"onnxruntime \S+", "onnxruntime X", text)
    text = re.sub(r"\d+ threads", "N threads", text)
    text = re.sub(r"─+", "─", text)
    text = re.sub(r"[ ]+\d+$", " MS", text, flags=re.MULTILINE)
    return re.sub(r"[ ]+", " ", text).strip()


def test_shown_output_is_the_true_output(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # away from an ./engines that a developer may have built
    command, shown = re.search(r"<!-- output: lare2-rt (.*?) -->\n```text\n(.*?)```", README, re.DOTALL).groups()
    run = subprocess.run(
        [sys.executable, "-m", "lare2_rt", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert normal(run.stderr + run.stdout) == normal(shown)


def test_python_example_runs(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    expected = re.search(r"#\s*(.*)$", code, re.MULTILINE).group(1)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    verdict, probability, *shape = run.stdout.split(maxsplit=2)
    assert expected.startswith(f"{verdict} {probability[:5]}")
    assert expected.endswith(" ".join(shape).strip())


def test_the_two_lines_are_the_ones_that_ci_runs():
    assert "pip install '.[cpu]' && lare2-rt infer examples/photo.jpg" in README
    assert "pip install -c constraints.txt -e '.[cpu,openvino,mnn,export,data,train,dev]' && pytest" in README
    script = (ROOT / ".ci/run").read_text()
    assert "'&& pytest$' README.md" in script
    assert "'&& lare2-rt infer' README.md" in script


def test_every_option_of_the_build_is_explained():
    """Each option of build_engines.py has a help text, and a default where it has one."""
    import typer.main

    from lare2_export.cli import app

    command = typer.main.get_command(app)
    for parameter in command.params:
        assert parameter.help, parameter.name
        if parameter.default is None and not getattr(parameter, "is_flag", False):
            # Nothing is shown for it, so the text has to say what happens without it.
            assert re.search("default|instead", parameter.help, re.IGNORECASE), parameter.name
