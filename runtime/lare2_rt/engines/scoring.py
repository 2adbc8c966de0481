"""Scores from several windows: the whole chain once, CLIP and EGRE alone for each further window, logits averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..pixels.preprocess import Pixels
from .contract import Float32, OpenEngine, WindowEngine


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What one image got.

    Attributes:
        logits: float [2], index 1 = generated: the engine's own bits for one window, else the mean in float64.
        lare: float32 [4,h,w]; attention: float32 [N,heads,tokens], one row per window, the centre one first.
        embedding: float32 [D], of the centre window.
    """

    logits: NDArray[np.floating]
    lare: Float32
    attention: Float32
    embedding: Float32

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        arrays = (self.logits, self.lare, self.attention, self.embedding)
        return all(bool(np.isfinite(array).all()) for array in arrays)


def not_finite() -> EngineError:
    """Return the error of an image whose scores are not finite."""
    return EngineError(
        "the engine gave NaN or infinity for this image", remedy="report it with the file and the bundle id"
    )


def check_windows(engine: OpenEngine, crops: int) -> None:
    """Raise EngineError where an engine cannot score several windows."""
    if crops > 1 and not isinstance(engine, WindowEngine):
        raise EngineError(
            f"{engine.info.name} runs the chain in one piece and cannot score windows alone",
            remedy="choose another engine with --engine, or leave --crops out",
        )


def score_batch(engine: OpenEngine, items: Sequence[Pixels], batch: int) -> tuple[list[Scores], dict[str, float]]:
    """Score at most ``batch`` images in calls of exactly ``batch``, padded by repeating the last.

    An image with fewer windows than its neighbours repeats its first one meanwhile, and that result is dropped, so
    company changes nothing.

    Returns:
        The scores in the order of ``items``, and milliseconds by phase for the whole batch.

    Raises:
        EngineError: the engine failed, or cannot score windows alone.
    """
    padded = [*items, *[items[-1]] * (batch - len(items))]
    output = engine.run(np.stack([p.image for p in padded]), np.stack([p.crop for p in padded]))
    logits = [[output.logits[row]] for row in range(len(items))]
    attention = [[output.attention[row]] for row in range(len(items))]
    timings = dict(output.timings)
    for index in range(max(_others(item) for item in items)):
        if not isinstance(engine, WindowEngine):
            raise EngineError(
                f"{engine.info.name} cannot score windows alone", remedy="load the detector with one window"
            )
        window = engine.run_window(output.lare, np.stack([_window(p, index) for p in padded]))
        for name, milliseconds in window.timings.items():
            timings[name] = timings.get(name, 0.0) + milliseconds
        for row, item in enumerate(items):
            if index < _others(item):
                logits[row].append(window.logits[row])
                attention[row].append(window.attention[row])
    scores = [
        Scores(_mean(logits[row]), output.lare[row].copy(), np.stack(attention[row]), output.embedding[row].copy())
        for row in range(len(items))
    ]
    return scores, timings


def _others(pixels: Pixels) -> int:
    return 0 if pixels.others is None else len(pixels.others)


def _window(pixels: Pixels, index: int) -> NDArray[np.uint8]:
    return pixels.others[index] if pixels.others is not None and index < len(pixels.others) else pixels.crop


def _mean(logits: list[Float32]) -> NDArray[np.floating]:
    return logits[0] if len(logits) == 1 else np.mean(np.stack(logits).astype(np.float64), axis=0)
