"""What can be evaluated: anything that gives detections and says who it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ...detection import DecisionRule, Detection, Provenance
from ...detector import Detector
from ...pixels.decode import ImageSource
from ...pixels.policy import Preprocessing


@dataclass(frozen=True, slots=True)
class Scorer:
    """A detector under test: a bundle on an engine, or the PyTorch reference.

    Attributes:
        provenance: who gives the scores; rule: how a score becomes a verdict; policy: how a file becomes pixels.
        detect_many: scores images in order; one that fails has ``error`` set. Raises EngineError.
        close: releases everything.
    """

    provenance: Provenance
    rule: DecisionRule
    policy: Preprocessing
    detect_many: Callable[[Iterable[ImageSource]], Iterator[Detection]]
    close: Callable[[], None] = lambda: None


def scorer_of(detector: Detector) -> Scorer:
    """Return a bundle on an engine as a scorer, which closes the detector."""
    info, policy = detector.info, detector.bundle.manifest.policy
    return Scorer(info.provenance, info.rule, policy, detector.detect_many, detector.close)


def scorer_key(provenance: Provenance) -> str:
    """sha256 in hex over all that decides a score's bits but the machine: stored scores of another key do not count."""
    p = provenance
    facts = [p.bundle_id, p.engine, p.engine_version, p.device, p.precision, p.batch, p.threads, p.build_key]
    if p.crops != 1:
        facts.append(p.crops)  # appended only then: scores from before there was a choice stay valid
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
