"""A component in stages: made from its ONNX graph once, then opened, each stage on the library it is placed on."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter

from ..bundle import Bundle
from ..errors import EngineError, first_line
from ..manifest import TensorSpec, Variant
from .chain import Arrays, Component, check_inputs, check_outputs
from .compiling import onnx_files, run_script
from .mnn_library import WinogradLevel, convert, load_model
from .onnxruntime import PROVIDER, session_settings

Kind = Literal["attention", "conv"]
Library = Literal["mnn", "onnxruntime"]

# Of what our own code makes of the same graph, placement and versions. Raise it with every change of that: what is in
# users' caches is made anew then.
REVISION = 1
_LISTING = "stages.json"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_STOP_SPINNING = "session.force_spinning_stop"
_SHARED_MEMORY = "session.use_env_allocators"
_sharing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the stages of a component run.

    Attributes:
        conv: library for convolutions and what lies between them; attention: library for transformer blocks.
        large_tiles_below: bytes of weights below which a stage on MNN may use the largest Winograd tiles, which take
            up to seven times the memory of the weights and multiply least (MNN's memory level 3); others use the
            smallest (level 1), which take not quite twice the memory.
    """

    conv: Library
    attention: Library
    large_tiles_below: int = 0

    def winograd(self, weights: int) -> WinogradLevel:
        """Return MNN's memory level for a stage with so many bytes of weights."""
        return 3 if weights < self.large_tiles_below else 1

    def library(self, kind: Kind) -> Library:
        """Return where stages of a kind run."""
        return self.conv if kind == "conv" else self.attention


class _Stage(BaseModel):
    """One line of the listing that ``staged_split.py`` writes; weights in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind
    graph: str
    weights: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def model(self) -> str:
        return self.graph.removesuffix(".onnx") + ".mnn"


def make_stages(bundle: Bundle, variant: Variant, folder: Path, placement: Placement) -> None:
    """Split a graph into the empty ``folder`` and convert what runs on MNN.

    What runs on ONNX Runtime keeps its weights in the bundle's data file, whose hash was checked.

    Raises:
        EngineError: a library refuses a stage. OSError: the disk is full.
    """
    with onnx_files(bundle, variant, folder):
        run_script(
            "staged_split.py",
            [variant.graph, "."],
            cwd=folder,
            doing=f"split {variant.graph} into stages",
            remedy="update onnx, or choose another --engine",
        )
        for stage in _listing(folder):
            if placement.library(stage.kind) == "mnn":
                # Weights in a file of their own are not held twice while a model is loaded.
                convert(folder, stage.graph, stage.model, size=stage.weights, external_from=0)
                (folder / stage.graph).unlink()


def open_stages(
    bundle: Bundle,
    variant: Variant,
    folder: Path,
    placement: Placement,
    *,
    runtime: Any,  # noqa: ANN401 - the binding has no types
    threads: int,
) -> Component:
    """Return a component that runs the stages in ``folder`` one after the other; raises what the libraries raise."""
    stages = _listing(folder)
    calls: list[Component] = []
    for stage in stages:
        if placement.library(stage.kind) == "mnn":
            path = folder / stage.model
            calls.append(
                load_model(
                    path, stage.inputs, stage.outputs, runtime=runtime, winograd=placement.winograd(stage.weights)
                )
            )
        else:
            calls.append(_open_session(bundle, folder / stage.graph, stage, threads))
    done = _last_uses(stages, keep={spec.name for spec in variant.outputs})

    def call(inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        check_inputs(variant, inputs)
        values: dict[str, NDArray[Any]] = dict(inputs)
        try:
            for run, finished in zip(calls, done, strict=True):
                values.update(run(values))
                for name in finished:
                    del values[name]
        except Exception as error:
            raise EngineError(
                f"staged failed in {variant.graph}: {first_line(error)}; close other programs if memory is short, "
                "else report it"
            ) from error
        outputs = {spec.name: values[spec.name] for spec in variant.outputs}
        check_outputs(variant, outputs)
        return outputs

    return call


def _listing(folder: Path) -> list[_Stage]:
    return TypeAdapter(list[_Stage]).validate_json((folder / _LISTING).read_bytes())


def _last_uses(stages: Sequence[_Stage], *, keep: set[str]) -> list[list[str]]:
    """Return, for every stage, the values that nothing reads after it."""
    seen = set(keep)
    done: list[list[str]] = []
    for stage in reversed(stages):
        names = {spec.name for spec in (*stage.inputs, *stage.outputs)}
        done.append(sorted(names - seen))
        seen |= names
    return done[::-1]


def share_memory(settings: Any) -> None:  # noqa: ANN401 - the binding has no types
    """Let a session with these SessionOptions take its memory from the one arena of this process.

    With an arena each, thirty sessions keep what one has in use.
    """
    with _sharing:
        _make_arena()
    settings.add_session_config_entry(_SHARED_MEMORY, "1")


@functools.cache
def _make_arena() -> None:
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    grows_as_asked = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    with contextlib.suppress(Exception):  # the program around us may have registered one
        onnxruntime.create_and_register_allocator(memory, grows_as_asked)


def _open_session(bundle: Bundle, path: Path, stage: _Stage, threads: int) -> Component:
    import onnxruntime

    settings = session_settings(threads)
    # The graph comes as bytes, out of the cache, and its weights from where they are.
    settings.add_session_config_entry(_EXTERNAL_FOLDER, str(bundle.path.resolve()))
    # The next stage runs on other threads, for which these would be in the way.
    settings.add_session_config_entry(_STOP_SPINNING, "1")
    share_memory(settings)
    session = onnxruntime.InferenceSession(path.read_bytes(), settings, providers=[PROVIDER])
    names = [spec.name for spec in stage.outputs]
    needed = [spec.name for spec in stage.inputs]

    def call(values: Arrays) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {name: values[name] for name in needed}), strict=True))

    return call
