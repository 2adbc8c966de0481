"""The catalogue of errors: every one that the project raises says what is wrong and what to do about it."""

import ast
import pickle
import re

import pytest

from lare2_rt import errors
from tests.conftest import ROOT

ROOMS = ("runtime/lare2_rt", "export/lare2_export", "lare2_ref", "benchmarks")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def family(sources):
    """Names of ``Lare2Error`` and of the classes below it, wherever they are defined."""
    known, before = {"Lare2Error"}, 0
    while len(known) > before:
        before = len(known)
        for tree in sources:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and any(name(base) in known for base in node.bases):
                    known.add(node.name)
    return known


def name(node):
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def words(node):
    """The fixed part of a text, with {} for what is filled in; None where it comes from elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def faults(tree, known):
    """What is wrong with the errors that a module makes, as (line, words)."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or name(node.func) not in known:
            continue
        remedies = [keyword.value for keyword in node.keywords if keyword.arg == "remedy"]
        if not remedies:
            yield node.lineno, "no remedy"
            continue
        problem, remedy = words(node.args[0]), words(remedies[0])
        if problem is not None and re.search(r"[.;:]$|^$", problem):
            yield node.lineno, f"the problem is no part of a sentence: {problem}"
        if remedy is not None and not re.match(r"[a-z0-9'{-].*[^.;:]$", remedy):
            yield node.lineno, f"the remedy is no part of a sentence: {remedy}"
        for text in (problem, remedy):
            if text is not None and re.search(r"lare2-rt\[|\n", text):
                yield node.lineno, f"names an extra of a project that is on no index, or breaks the line: {text}"


def test_every_error_has_its_remedy():
    trees = {path: ast.parse(path.read_text()) for path in SOURCES}
    known = family(trees.values())
    assert {"UsageError", "ImageError", "BundleError", "EngineError", "OutputError", "SourceError"} <= known
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}" for path, tree in trees.items() for line, what in faults(tree, known)
    ]
    assert not found, "\n".join(found)
    made = sum(name(n.func) in known for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.Call))
    assert made > 250, "the catalogue looks at next to nothing"


@pytest.mark.parametrize(
    "planted",
    [
        "raise UsageError('no')",
        "raise UsageError('it is wrong;', remedy='do it again')",
        "raise UsageError('it is wrong', remedy='Do it again.')",
        "raise EngineError(f'{name} is missing', remedy=f\"pip install 'lare2-rt[{name}]'\")",
    ],
)
def test_a_planted_fault_is_found(planted):
    assert list(faults(ast.parse(planted), {"UsageError", "EngineError"}))


@pytest.mark.parametrize("kind", [errors.UsageError, errors.ImageError, errors.EngineError, errors.OutputError])
def test_both_parts_cross_to_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("it is wrong", remedy="do it again")))
    assert type(error) is kind
    assert (error.problem, error.remedy, str(error)) == ("it is wrong", "do it again", "it is wrong; do it again")


def test_a_sentence_that_was_joined_elsewhere_stays_whole():
    assert str(errors.EngineError("it is wrong; do it again")) == "it is wrong; do it again"


def test_nothing_takes_sentences_apart():
    """No source splits an error's text at a mark: what happened and what to do are fields."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name(node.func) in ("split", "partition", "rpartition", "rsplit"):
                taken = ast.unparse(node.func.value) if node.args else ""
                assert not re.search(r"str\(error\)|\.problem|\.remedy", taken), f"{path.name}:{node.lineno}"
