"""What can be evaluated: anything that gives detections and says who it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Protocol

from ...detection import DecisionRule, Detection, Provenance
from ...detector import Detector
from ...pixels.decode import ImageSource
from ...pixels.policy import Preprocessing


class Scorer(Protocol):
    """A detector under test: a bundle on an engine, or the PyTorch reference."""

    @property
    def provenance(self) -> Provenance:
        """Who gives the scores."""

    @property
    def rule(self) -> DecisionRule:
        """How a score becomes a verdict."""

    @property
    def policy(self) -> Preprocessing:
        """How a file becomes pixels."""

    def detect_many(self, sources: Iterable[ImageSource]) -> Iterator[Detection]:
        """Score images in order; one that fails has ``error`` set. Raises EngineError."""

    def close(self) -> None:
        """Release everything."""


class DetectorScorer:
    """A bundle on an engine."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @property
    def provenance(self) -> Provenance:
        """See ``Scorer``."""
        return self._detector.info.provenance

    @property
    def rule(self) -> DecisionRule:
        """See ``Scorer``."""
        return self._detector.info.rule

    @property
    def policy(self) -> Preprocessing:
        """See ``Scorer``."""
        return self._detector.bundle.manifest.policy

    def detect_many(self, sources: Iterable[ImageSource]) -> Iterator[Detection]:
        """See ``Scorer``."""
        return self._detector.detect_many(sources)

    def close(self) -> None:
        """See ``Scorer``."""
        self._detector.close()


def scorer_key(provenance: Provenance) -> str:
    """sha256 in hex over all that decides a score's bits but the machine: stored scores of another key do not count."""
    p = provenance
    facts = [p.bundle_id, p.engine, p.engine_version, p.device, p.precision, p.batch, p.threads, p.build_key]
    if p.crops != 1:
        facts.append(p.crops)  # appended only then: scores from before there was a choice stay valid
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
