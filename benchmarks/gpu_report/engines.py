"""Engine rows of the GPU report: what users get with ``--engine``, at any batch size of the bundle."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_report.cases import Case, RefusedError
from lare2_rt.bundle.opening import Bundle
from lare2_rt.engines.contract import ChainOutput, EngineOptions, OpenEngine
from lare2_rt.engines.registry import engine_named
from lare2_rt.errors import EngineError


class EngineRunner:
    """An open engine. Implements ``Runner`` of ``gpu_report_measure``."""

    def __init__(self, opened: OpenEngine) -> None:
        self.opened = opened
        info = opened.info
        self.facts: dict[str, Any] = {"engine": info.name, "version": info.version, "build_key": info.build_key}

    def run(self, image: NDArray[np.uint8], crop: NDArray[np.uint8]) -> ChainOutput:
        """Score one batch, host copies included."""
        return self.opened.run(image, crop)

    def peak_memory(self) -> int | None:
        """Engines do not tell what they take of a GPU."""
        return None

    def close(self) -> None:
        """Release the engine."""
        self.opened.close()


def open_engine_row(bundle: Bundle, case: Case) -> EngineRunner:
    """Open an engine; raises RefusedError where it cannot be used here, EngineError where it breaks.

    Runs use batch 1 with an engine whose rows are not known to be equal. Here larger batches are opened all the same:
    whether rows are equal is one of the things to find out.
    """
    engine = engine_named(case.option)
    options = EngineOptions(
        threads=case.threads,
        precision=case.precision,
        batch=case.batch,
        cuda_graph=case.graph is not False,
        build_anew=True,
        notify=lambda line: print(line, file=sys.stderr, flush=True),
    )
    reason = engine.why_not(bundle, options)
    if reason is not None:
        raise RefusedError(reason)
    opened = engine.open(bundle, options)
    if opened.info.batch != case.batch:
        opened.close()
        raise EngineError(f"{engine.name} opened batch {opened.info.batch} instead of {case.batch}", remedy="report it")
    return EngineRunner(opened)
