"""The result for one image, and the rule that turns a probability into a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .columns import SCHEMA, record_of
from .errors import UsageError

if TYPE_CHECKING:
    from .pixels.preprocess import View

Verdict = Literal["generated", "real", "unsure"]
Calibration = Literal["untrained", "uncalibrated", "calibrated"]


@dataclass(frozen=True, slots=True)
class DecisionRule:
    """How a probability becomes a verdict.

    Attributes:
        calibration: ``untrained`` weights never give a verdict; ``uncalibrated`` ones only with an explicit threshold;
            a ``calibrated`` rule has two thresholds with an ``unsure`` band between them.
        real_below: probability of ``generated`` under which the verdict is ``real``.
        generated_from: probability from which the verdict is ``generated``.
        explicit: True when the thresholds were given by the caller and not by the bundle.
        temperature, bias: Platt scaling of the logits, measured by ``lare2-rt calibrate``: the probability is
            sigmoid((generated − real) / temperature + bias). Without calibration 1 and 0, which is the plain softmax.
        crops: windows of the CLIP branch with which scaling and thresholds of a ``calibrated`` rule were measured.
        demonstration: the model was made to show the tool; whatever it says is marked so.
    """

    calibration: Calibration
    real_below: float | None = None
    generated_from: float | None = None
    explicit: bool = False
    temperature: float = 1.0
    bias: float = 0.0
    crops: int = 1
    demonstration: bool = False

    def misfit(self, crops: int) -> str | None:
        """Return the sentence for a calibrated rule that is used with another number of windows; None where it fits."""
        if self.calibration != "calibrated" or crops == self.crops:
            return None
        return (
            f"this bundle was calibrated with --crops {self.crops} and is used with --crops {crops}: its probability "
            f"and thresholds were not measured for that; leave --crops out, or run 'lare2-rt calibrate --crops {crops}'"
        )

    def with_threshold(self, threshold: float | None) -> DecisionRule:
        """Return the rule with the caller's single threshold in [0, 1]; None keeps the bundle's. Raises UsageError."""
        if threshold is None:
            return self
        if not 0 <= threshold <= 1:
            raise UsageError(
                f"the threshold must lie between 0 and 1, not {threshold}", remedy="choose a probability, such as 0.5"
            )
        return replace(self, real_below=threshold, generated_from=threshold, explicit=True)

    @property
    def decides(self) -> bool:
        """Whether a verdict other than ``unsure`` is possible."""
        return self.calibration != "untrained" and self.real_below is not None and self.generated_from is not None

    def probability(self, logits: Sequence[float] | NDArray[np.floating]) -> float:
        """Probability (0..1) of being generated from the two raw logits, index 1 = generated."""
        return probability_of_generated(logits, temperature=self.temperature, bias=self.bias)

    def verdict(self, probability: float) -> Verdict:
        """Return the verdict for the probability (0..1) that the image is generated."""
        generated, real = self.verdicts(np.array([probability]))
        return "generated" if generated[0] else "real" if real[0] else "unsure"

    def verdicts(self, probabilities: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which of the probabilities [N] mean ``generated`` and which ``real``; the others mean ``unsure``."""
        if self.calibration == "untrained" or self.real_below is None or self.generated_from is None:
            nothing = np.zeros(probabilities.shape, np.bool_)
            return nothing, nothing
        generated = probabilities >= self.generated_from
        return generated, ~generated & (probabilities < self.real_below)

    @property
    def reservation(self) -> tuple[str, str] | None:
        """Why every verdict is ``unsure``, or is not to be believed, and what to do about it; None when verdicts are
        given and meant.
        """
        if self.calibration == "untrained":
            return (
                "this model is untrained and cannot tell generated from real: its verdict is always 'unsure'",
                "build a bundle from trained weights with 'python export/build_engines.py --model FOLDER'",
            )
        if self.generated_from is None:
            return (
                "this bundle is uncalibrated: its verdict is 'unsure'",
                (
                    "measure thresholds on labelled images of your own with 'lare2-rt calibrate', or give one with "
                    "--threshold"
                ),
            )
        if self.demonstration:
            return (
                (
                    "this model is a demonstration: its verdicts show how the tool works and are no evidence about an "
                    "image"
                ),
                "build a bundle from Stable Diffusion's weights with 'python export/build_engines.py'",
            )
        return None

    @property
    def note(self) -> str | None:
        """``reservation`` as one line."""
        return None if self.reservation is None else "; ".join(self.reservation)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What produced a result: together these decide its bits.

    Attributes:
        bundle_name, bundle_id, bundle_path: the bundle; ``bundle_id`` is its sha256 identity in hex.
        engine, engine_version, device: for instance onnxruntime, 1.32.0, cpu.
        precision: ``fp32`` or ``fp16``; batch: images per call of the compiled graph; threads: CPU threads.
        build_key: sha256 in hex over everything that determines the compiled engine.
        crops: windows of the CLIP branch asked for, whose logits are averaged; 1 is the official centre window.
    """

    bundle_name: str
    bundle_id: str
    bundle_path: str
    engine: str
    engine_version: str
    device: str
    precision: str
    batch: int
    threads: int
    build_key: str
    crops: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """The answer for one image. With ``error`` set, everything that the image would have given is None.

    Attributes:
        source: path or name of the input.
        verdict: ``generated``, ``real`` or ``unsure``.
        probability: of being generated, 0..1: softmax of the logits, scaled by ``rule`` where that is calibrated.
        logits: (real, generated), raw; the mean over windows where there are several.
        lare: float32 [4,h,w], the latent reconstruction error (squared noise error averaged over the ensemble, >= 0).
        attention: float32 [heads,tokens], ESR's weights of the patch tokens, row-major over the CLIP feature grid; of
            the centre window where there are several.
        provenance: bundle and engine.
        rule: the decision rule that gave the verdict.
        timings: milliseconds by phase (decode, each component, total); of a whole batch where images were batched.
        error: one sentence with the remedy when this image failed.
        window_attention: float32 [N,heads,tokens], the same for every window, the centre one first.
        view: what the branches saw of the picture, where that was asked for; never part of a record.
    """

    source: str
    provenance: Provenance
    rule: DecisionRule
    verdict: Verdict | None = None
    probability: float | None = None
    logits: tuple[float, float] | None = None
    lare: NDArray[np.float32] | None = None
    attention: NDArray[np.float32] | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    window_attention: NDArray[np.float32] | None = None
    view: View | None = None
    schema: ClassVar[str] = SCHEMA

    @property
    def ok(self) -> bool:
        """True when the image was scored."""
        return self.error is None

    @property
    def lare_mean(self) -> float | None:
        """Mean of the LaRE map over channels and space."""
        return None if self.lare is None else float(self.lare.mean())

    @property
    def windows(self) -> int | None:
        """Number of windows of the CLIP branch whose logits were averaged: fewer than asked for in a small picture."""
        if self.attention is None:
            return None
        return 1 if self.window_attention is None else len(self.window_attention)

    def as_dict(self) -> dict[str, Any]:
        """Return the record of JSON output, schema ``lare2-rt/detection/1``: plain types, maps as means."""
        return record_of(self)


def probability_of_generated(
    logits: Sequence[float] | NDArray[np.floating], *, temperature: float = 1.0, bias: float = 0.0
) -> float:
    """Probability (0..1) from two logits, index 1 = ``generated``, in float64; without scaling it is their softmax."""
    real, generated = (float(value) for value in logits)
    gap = (generated - real) / temperature + bias
    # Both branches keep exp's argument <= 0, so a confident logit cannot overflow.
    return 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))


def failed(source: str, error: str, *, provenance: Provenance, rule: DecisionRule) -> Detection:
    """Return the record of an image that could not be scored."""
    return Detection(source, provenance, rule, error=error)


def scored(
    source: str,
    logits: NDArray[np.floating],
    *,
    lare: NDArray[np.float32],
    attention: NDArray[np.float32],
    provenance: Provenance,
    rule: DecisionRule,
    timings: Mapping[str, float],
    view: View | None = None,
) -> Detection:
    """Return the record of one scored image.

    Args:
        source: name; logits: [2], index 1 = generated; lare: [4,h,w].
        attention: [heads,tokens], or [N,heads,tokens] with the centre window first.
        provenance, rule, timings, view: see ``Detection``.
    """
    if attention.ndim == 2:
        attention = attention[None]
    probability = rule.probability(logits)
    return Detection(
        source,
        provenance,
        rule,
        verdict=rule.verdict(probability),
        probability=probability,
        logits=(float(logits[0]), float(logits[1])),
        lare=lare,
        attention=attention[0],
        timings=timings,
        window_attention=attention,
        view=view,
    )
