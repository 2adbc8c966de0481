"""Every TensorRT name in our code exists in both versions that it is written for.

``tests/tensorrt_names`` lists the names of classes, members and enum values of the Python bindings of TensorRT 10.16.1
and 11.4.0, which cannot be installed on a machine without a GPU.
"""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

from lare2_rt.engines import tensorrt

FOLDER = Path(tensorrt.__file__).parent
SOURCES = sorted(FOLDER.glob("*.py"))
# What our code calls things, and what they are.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "error": "ParserError",
}
# TensorRT-RTX alone; only touched where the configuration has them.
RTX = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
VERSIONS = ["10.16", "11.4"]


def names(version):
    lines = (Path(__file__).parents[1] / f"tensorrt_names/{version}.txt").read_text().splitlines()
    return {name: set(members.split()) for name, _, members in (line.partition(":") for line in lines)}


def attributes():
    """(file, line, chain) for every dotted name such as trt.BuilderFlag.TF32 or config.clear_flag."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            chain, inner = [], node
            while isinstance(inner, ast.Attribute):
                chain.insert(0, inner.attr)
                inner = inner.value
            if chain and isinstance(inner, ast.Name):
                yield path.name, node.lineno, [inner.id, *chain]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists(version):
    known, seen = names(version), 0
    for file, line, (root, *chain) in attributes():
        if root == "trt" and chain[0] not in RTX:
            assert chain[0] in known, (file, line, chain)
            for owner, member in pairwise(chain):
                assert member == "__init__" or owner not in known or member in known[owner], (file, line, chain)
            seen += 1
        elif root in CLASSES and file in ("plan.py", "chain.py") and chain[0] not in RTX:
            assert chain[0] in known[CLASSES[root]], (file, line, root, chain)
            seen += 1
    assert seen > 40


def test_the_engine_covers_both_mistakes_that_versions_invite():
    """Flags of version 10 that 11 has not, and literal bits whose meaning moved."""
    text = "".join(path.read_text() for path in SOURCES)
    for gone in ("BuilderFlag.FP16", "platform_has_fast_fp16", "device_memory_size)", "max_workspace_size"):
        assert gone not in text
    for node in ast.walk(ast.parse((FOLDER / "plan.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "create_network":
            assert not isinstance(node.args[0], ast.Constant)


def test_names_would_catch_a_name_of_one_version():
    old, new = (names(version) for version in VERSIONS)
    assert "FP16" in old["BuilderFlag"]
    assert "FP16" not in new["BuilderFlag"]
    assert "set_device_memory" in old["IExecutionContext"] & new["IExecutionContext"]
