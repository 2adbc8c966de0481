"""Whether an engine, on this machine, gives what the PyTorch reference gave when the bundle was built.

The bundle carries the reference's logits and LaRE on pictures that can be drawn anywhere, so that an engine whose
kernels the build never saw is held against it before anybody relies on its verdicts.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bundle.opening import Bundle
from ..errors import BundleError
from ..pixels.procedural import procedural_pictures
from .contract import OpenEngine
from .difference import difference

# How far an engine with kernels of its own may be from the reference. On the embedded model the worst float32 engine so
# far, one with Winograd convolutions of another library, was 6e-5 away in LaRE and 3e-7 in probability.
TOLERANCES = {
    "lare": (1e-3, "relative L2; over ten times what Winograd convolutions cost, a tenth of what half precision costs"),
    "probability": (1e-3, "a verdict changes only for images that are within a thousandth of a threshold"),
}
# The same in half precision, as builds judge it (lare2_export/parity/tolerances.py).
HALF_TOLERANCES = {
    "lare": (1e-2, "relative L2; half precision keeps three digits, through hundreds of operations"),
    "probability": (1e-2, "a verdict changes only for images that are within a hundredth of a threshold"),
}


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The figures of one check.

    Attributes:
        lare: worst relative L2 of LaRE over the pictures; inf with any NaN or infinity.
        logits, probability: largest absolute difference of a logit, and of the probability of ``generated``.
        not_finite: number of NaN or infinite values in logits and LaRE.
        milliseconds: median time per image, after one call to warm up.
        passed: whether LaRE and probability are within ``TOLERANCES``, or ``HALF_TOLERANCES`` in half precision.
        lare_limit, probability_limit: what was allowed.
    """

    lare: float
    logits: float
    probability: float
    not_finite: int
    milliseconds: float
    passed: bool
    lare_limit: float = TOLERANCES["lare"][0]
    probability_limit: float = TOLERANCES["probability"][0]

    @property
    def verdict(self) -> str:
        """The figures in words, for sentences."""
        if self.not_finite:
            return f"it gives {self.not_finite} values that are not finite"
        return (
            f"its LaRE is {self.lare:.1e} (relative L2) and its probability {self.probability:.1e} away from the "
            f"reference, where {self.lare_limit:.0e} and {self.probability_limit:.0e} are allowed"
        )


def reference_key(bundle: Bundle) -> str:
    """Return sha256 in hex over what a check compares with: the bundle's identity and the reference's answers."""
    answers = b"" if bundle.selfcheck is None else bundle.selfcheck.tobytes()
    return hashlib.sha256(bundle.manifest.id.encode() + answers).hexdigest()


def check_engine(engine: OpenEngine, bundle: Bundle) -> SelfCheck:
    """Run the pictures through an engine, in the rows of its batches, and compare.

    Raises:
        EngineError: the engine failed.
        BundleError: the bundle has no answers, or those of other pictures.
    """
    pictures = [bundle.manifest.preprocess(picture) for picture in procedural_pictures()]
    shape = bundle.manifest.method.latent_shape
    expected = bundle.selfcheck
    if expected is None or len(expected) != len(pictures):
        raise BundleError(
            f"{bundle.path} has no self-check data that this version can use",
            remedy="build the bundle again, or install the lare2-rt that built it",
        )
    batch = engine.info.batch
    found: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    times: list[float] = []
    for start in range(0, len(pictures), batch):
        rows = [pictures[min(start + row, len(pictures) - 1)] for row in range(batch)]
        image, crop = np.stack([p.image for p in rows]), np.stack([p.crop for p in rows])
        if not found:
            engine.run(image, crop)
        begin = time.perf_counter()
        output = engine.run(image, crop)
        times.append((time.perf_counter() - begin) * 1e3 / batch)
        found += [(output.logits[row], output.lare[row]) for row in range(min(batch, len(pictures) - start))]
    limits = HALF_TOLERANCES if engine.info.precision == "fp16" else TOLERANCES
    return _compare(bundle, found, expected, shape=shape, milliseconds=statistics.median(times), limits=limits)


def _compare(
    bundle: Bundle,
    found: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    expected: NDArray[np.float32],
    *,
    shape: tuple[int, ...],
    milliseconds: float,
    limits: Mapping[str, tuple[float, str]],
) -> SelfCheck:
    rule = bundle.manifest.rule
    lare = logits = probability = 0.0
    not_finite = 0
    for (our_logits, our_lare), row in zip(found, expected, strict=True):
        bad = int(np.count_nonzero(~np.isfinite(our_logits)) + np.count_nonzero(~np.isfinite(our_lare)))
        not_finite += bad
        if bad:
            lare = logits = probability = np.inf
            continue
        lare = max(lare, difference(our_lare, row[2:].reshape(shape)).relative_l2)
        logits = max(logits, float(np.abs(our_logits - row[:2]).max()))
        probability = max(probability, abs(rule.probability(our_logits) - rule.probability(row[:2])))
    allowed = limits["lare"][0], limits["probability"][0]
    passed = lare <= allowed[0] and probability <= allowed[1]
    return SelfCheck(lare, logits, probability, not_finite, milliseconds, passed, *allowed)
