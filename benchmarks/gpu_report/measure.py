"""Judging and timing one open runner: parity, two images through one graph, rows of a batch, milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.facts import finite, percentiles
from lare2_rt.detection import DecisionRule
from lare2_rt.engines.contract import ChainOutput
from lare2_rt.engines.difference import difference
from lare2_rt.engines.self_check import HALF_TOLERANCES, TOLERANCES
from lare2_rt.pixels.preprocess import Pixels

Arrays = Mapping[str, NDArray[np.float32]]
# Two pictures' LaRE are further apart than this (relative L2) on any weights; one that is not was not computed anew.
DISTINCT = 1e-2
# The same picture again through the same kernels: equal, or by a nondeterministic sum almost.
AGAIN = 1e-3
WARM_UP, FEWEST, MOST = 3, 10, 500


class Runner(Protocol):
    """What a row opens.

    Attributes:
        facts: versions and settings, for the report.
    """

    facts: dict[str, Any]

    def run(self, image: NDArray[np.uint8], crop: NDArray[np.uint8]) -> ChainOutput:
        """Score one batch, uint8 [B,S,S,3] and [B,C,C,3]; what it returns is not overwritten by the next call."""

    def peak_memory(self) -> int | None:
        """Return the most bytes of GPU memory in use, if that can be told."""

    def close(self) -> None:
        """Release everything."""


def batch_of(pictures: Sequence[Pixels], order: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pictures of these numbers as one batch."""
    chosen = [pictures[index % len(pictures)] for index in order]
    return np.stack([p.image for p in chosen]), np.stack([p.crop for p in chosen])


def measure_parity(
    runner: Runner, pictures: Sequence[Pixels], expected: Arrays, *, batch: int, precision: str, rule: DecisionRule
) -> dict[str, Any]:
    """Compare every picture, in every row that it takes, with what the reference gives.

    Args:
        expected: ``lare`` and ``logits``, and ``embedding`` where it is known, one row a picture.
    """
    limits = HALF_TOLERANCES if precision == "fp16" else TOLERANCES
    names = [name for name in ("lare", "embedding", "logits") if name in expected]
    worst = dict.fromkeys(names, 0.0)
    probability, not_finite = 0.0, 0
    for start in range(0, max(len(pictures), batch), batch):
        order = [(start + row) % len(pictures) for row in range(batch)]
        output = runner.run(*batch_of(pictures, order))
        for row, index in enumerate(order):
            for name in names:
                ours = getattr(output, name)[row]
                bad = int(np.count_nonzero(~np.isfinite(ours)))
                not_finite += bad
                gap = np.inf if bad else difference(ours, expected[name][index]).relative_l2
                worst[name] = max(worst[name], float(gap))
            ours, theirs = (rule.probability(logits) for logits in (output.logits[row], expected["logits"][index]))
            probability = max(probability, abs(ours - theirs)) if np.isfinite(ours) else np.inf
    passed = not not_finite and worst["lare"] <= limits["lare"][0] and probability <= limits["probability"][0]
    return {
        "relative_l2": {name: finite(gap) for name, gap in worst.items()},
        "probability": finite(probability),
        "not_finite": not_finite,
        "limits": {name: limit for name, (limit, _) in limits.items()},
        "passed": bool(passed),
    }


def measure_replay(runner: Runner, pictures: Sequence[Pixels], expected: Arrays, *, batch: int) -> dict[str, Any]:
    """Run one picture, another, and the first again: a graph that replays its old input gives itself away.

    Each result must also be nearer to its own picture's answer than to the other's.
    """
    first, second, again = (runner.run(*batch_of(pictures, [index] * batch)).lare for index in (0, 1, 0))
    apart = difference(second, first).relative_l2
    back = difference(again, first).relative_l2
    own = all(
        difference(lare[0], expected["lare"][index]).relative_l2
        < difference(lare[0], expected["lare"][1 - index]).relative_l2
        for lare, index in ((first, 0), (second, 1), (again, 0))
    )
    return {
        "apart": finite(apart),
        "again": finite(back),
        "same_bits_again": bool(np.array_equal(first, again)),
        "own_answers": bool(own),
        "passed": bool(apart > DISTINCT and back <= AGAIN and own),
    }


def measure_rows(runner: Runner, pictures: Sequence[Pixels], *, batch: int) -> dict[str, Any] | None:
    """Put one picture into the first and the last row, between others; None at batch 1. Decides no verdict.

    An engine may only serve batches where a file's bits do not depend on its row and its neighbours.
    """
    if batch == 1:
        return None
    orders = ([0, *range(1, batch)], [*range(1, batch), 0])
    head, tail = (runner.run(*batch_of(pictures, order)) for order in orders)
    pairs = [(getattr(head, name)[0], getattr(tail, name)[-1]) for name in ("lare", "embedding", "logits")]
    return {
        "equal": all(np.array_equal(a, b) for a, b in pairs),
        "relative_l2": finite(max(difference(a, b).relative_l2 for a, b in pairs)),
    }


def measure_time(
    runner: Runner,
    pictures: Sequence[Pixels],
    *,
    batch: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time calls, copies from and to the host included, a picture after another; milliseconds."""
    batches = [batch_of(pictures, range(start, start + batch)) for start in range(len(pictures))]
    for number in range(WARM_UP):
        runner.run(*batches[number % len(batches)])
    times: list[float] = []
    begin = clock()
    while len(times) < FEWEST or (len(times) < MOST and clock() - begin < seconds):
        given = batches[len(times) % len(batches)]
        start = clock()
        runner.run(*given)
        times.append(clock() - start)
    call = percentiles(times)
    return {
        "calls": len(times),
        "call_ms": call,
        "image_ms": call["p50"] / batch,
        "images_per_second": 1e3 * batch / call["p50"],
    }
