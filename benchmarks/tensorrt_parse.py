"""What TensorRT's parser makes of a bundle's half-precision graphs; needs no GPU.

    python -m benchmarks.tensorrt_parse --bundle DIR [--library tensorrt_rtx] [--out FILE]

Each graph is parsed strongly typed, as a build does it, and its layers are counted by type, precision and kind of norm.
Exit code 0: every graph is taken and is what it should be; 1: one is not; 2: nothing could start.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.command import run_command, write_report
from lare2_rt.bundle.manifest import COMPONENTS, ComponentName
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.engines.tensorrt.plan import Messages, make_logger
from lare2_rt.errors import EngineError
from lare2_rt.host.atomic import check_target

SCHEMA = "lare2-rt/tensorrt-parse/1"
# Layers whose precision decides speed; the pool of CLIP and what lies around the networks compute in float32.
_ARITHMETIC = ("CONVOLUTION", "MATRIX_MULTIPLY", "NORMALIZATION")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = parser().parse_args(arguments)
    return run_command("tensorrt_parse", lambda: _parse(given))


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.tensorrt_parse", description=__doc__.splitlines()[0])
    result.add_argument("--bundle", type=Path, required=True, help="a bundle that was built with --half")
    result.add_argument("--library", choices=("tensorrt_rtx", "tensorrt"), default="tensorrt_rtx")
    result.add_argument("--out", type=Path, help="write the report here as well")
    return result


def _parse(given: argparse.Namespace) -> int:
    if given.out is not None:
        check_target(given.out, overwrite=True)
    report = parse_all(given.library, open_bundle(given.bundle))
    if given.out is not None:
        write_report(given.out, report)
    print(json.dumps(report, indent=1, sort_keys=True))
    return 0 if report["passed"] else 1


def parse_all(library: str, bundle: Bundle) -> dict[str, Any]:
    """Return the report on all components; raises EngineError when the library cannot be used here."""
    try:
        trt = importlib.import_module(library)
    except ImportError as error:
        name = library.replace("_", "-")
        raise EngineError(f"{library} cannot be imported ({error})", remedy=f"pip install {name}") from error
    components = {name: parse(trt, bundle, name) for name in COMPONENTS}
    return {
        "schema": SCHEMA,
        "library": f"{library} {trt.__version__}",
        "bundle": bundle.manifest.id,
        "model": bundle.manifest.model.name,
        "components": components,
        "passed": all(entry["accepted"] and entry["shape_layers"] == 0 for entry in components.values()),
    }


def parse(trt: Any, bundle: Bundle, component: ComponentName) -> dict[str, Any]:  # noqa: ANN401 - it has no types
    """Return what one graph becomes; a graph that is refused has the parser's words and no layers."""
    variant = bundle.variant(component, batch=1, precision="fp16", profile="native")
    messages = Messages()
    logger = make_logger(trt, messages)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:
        raise EngineError(
            f"{trt.__name__} cannot start here ({messages.last})", remedy="check the GPU and its driver"
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    begin = time.perf_counter()
    accepted = bool(parser.parse_from_file(os.fspath(bundle.graph_path(variant))))
    refused = [parser.get_error(index) for index in range(parser.num_errors)]
    layers = [network.get_layer(index) for index in range(network.num_layers)] if accepted else []
    types = Counter(layer.type.name for layer in layers)
    return {
        "accepted": accepted,
        "errors": [f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in refused],
        "seconds": round(time.perf_counter() - begin, 1),
        "layers": dict(sorted(types.items())),
        "precision": _precisions(layers),
        "norms": _norms(trt, layers),
        "shape_layers": types["SHAPE"],
    }


def _precisions(layers: Sequence[Any]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {kind: Counter() for kind in _ARITHMETIC}
    for layer in layers:
        if layer.type.name in found:
            found[layer.type.name][layer.get_output(0).dtype.name] += 1
    return {kind: dict(counts) for kind, counts in found.items() if counts}


def _norms(trt: Any, layers: Sequence[Any]) -> dict[str, int]:  # noqa: ANN401
    """Count native normalisation layers by kind: a group norm has several groups, a layer norm one."""
    kinds: Counter[str] = Counter()
    for layer in layers:
        if layer.type == trt.LayerType.NORMALIZATION:
            layer.__class__ = trt.INormalizationLayer  # the binding returns the base class
            kinds["group" if layer.num_groups > 1 else "layer"] += 1
    return dict(kinds)


if __name__ == "__main__":
    sys.exit(main())
