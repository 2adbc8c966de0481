"""Evaluate: score every image as it is and corrupted, and measure each model on the whole and per generator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...detection import DecisionRule, Provenance
from ...errors import UsageError
from .corruptions import CLEAN, Corruption
from .items import Selection
from .options import ReportOptions
from .scores import Bin, Floats, reliability
from .store import Failure, Scored, Scorer, ScoreStore, score
from .summary import Sample, Summary, probabilities, summarise

OpenScorer = Callable[[], Scorer]
Step = Callable[[object], None]
Progress = Callable[[int], contextlib.AbstractContextManager[Step]]


@dataclass(frozen=True, slots=True)
class Stability:
    """How far a corruption moves the same image's score: mean |probability corrupted − clean|, and the share of images
    that change their verdict or, where the rule has no thresholds, sides at 0.5.
    """

    mean_shift: float
    flips: float


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """One model on one state of the images.

    Attributes:
        name: ``clean`` or the corruption's; describe: in words.
        sample: the scored images; overall: metrics of all; generators: of each generator against all real images.
        reliability: bins behind the ECE; stability: None for ``clean``; failures: images without a score.
    """

    name: str
    describe: str
    sample: Sample
    overall: Summary
    generators: dict[str, Summary]
    reliability: list[Bin]
    stability: Stability | None
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModelResult:
    """One model under every condition; the first is ``clean``."""

    provenance: Provenance
    rule: DecisionRule
    conditions: tuple[Condition, ...]

    @property
    def clean(self) -> Condition:
        """The images as they are."""
        return self.conditions[0]

    @property
    def failures(self) -> list[tuple[str, Failure]]:
        """The name of the condition and the image of every score that could not be had."""
        return [(condition.name, failure) for condition in self.conditions for failure in condition.failures]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything that a report says."""

    selection: Selection
    options: ReportOptions
    models: tuple[ModelResult, ...]


def evaluate(
    scorers: Sequence[OpenScorer],
    selection: Selection,
    options: ReportOptions,
    *,
    corruptions: Sequence[Corruption],
    progress: Progress,
) -> Evaluation:
    """Evaluate models one after another, each open only while it scores.

    Raises:
        EngineError, OutputError: scores up to then are kept in ``options.scores``; the same call goes on from there.
        UsageError: a bundle is given twice, or so many images failed that a class is missing.
    """
    models: list[ModelResult] = []
    for open_scorer in scorers:
        with contextlib.closing(open_scorer()) as scorer:
            bundle_id = scorer.provenance.bundle_id
            if bundle_id in {model.provenance.bundle_id for model in models}:
                raise UsageError(f"the bundle {bundle_id[:12]} is given twice", remedy="name each once")
            conditions: list[Condition] = []
            for corruption in (None, *corruptions):
                store = ScoreStore(options.scores, scorer, corruption)
                with progress(len(selection.items)) as step:
                    scored = score(scorer, selection.items, store=store, corruption=corruption, step=step)
                clean = conditions[0].sample if conditions else None
                conditions.append(_condition(scored, selection, scorer.rule, options, corruption, clean))
            models.append(ModelResult(scorer.provenance, scorer.rule, tuple(conditions)))
    return Evaluation(selection, options, tuple(models))


def _condition(
    scored: Scored,
    selection: Selection,
    rule: DecisionRule,
    options: ReportOptions,
    corruption: Corruption | None,
    clean: Sample | None,
) -> Condition:
    everything = Sample(selection.generated, probabilities(rule, scored.logits), selection.groups)
    known = ~np.isnan(everything.probabilities)
    sample = everything.only(known)
    if not (sample.generated.any() and (~sample.generated).any()):
        example = scored.failures[0]
        raise UsageError(
            "too few images could be scored to measure anything", remedy=f"{example.name}: {example.error}"
        )
    overall = summarise(sample, rule, resamples=options.resamples, seed=options.seed)
    resamples = options.resamples if corruption is None else 0
    names = np.array([item.generator for item in selection.items], dtype=object)
    generators = {}
    for name in selection.generators:
        part = everything.only(known & (~everything.generated | (names == name)))
        if part.generated.any():
            generators[name] = summarise(part, rule, resamples=resamples, seed=options.seed)
    return Condition(
        name=CLEAN if corruption is None else corruption.name,
        describe="the images as they are" if corruption is None else corruption.describe,
        sample=everything,
        overall=overall,
        generators=generators,
        reliability=reliability(sample.generated, sample.probabilities),
        stability=None if clean is None else _stability(clean.probabilities, everything.probabilities, rule),
        failures=scored.failures,
    )


def _stability(before: Floats, after: Floats, rule: DecisionRule) -> Stability | None:
    both = ~(np.isnan(before) | np.isnan(after))
    before, after = before[both], after[both]
    if not len(before):
        return None
    if rule.decides:
        moved = np.any(np.not_equal(rule.verdicts(before), rule.verdicts(after)), axis=0)
    else:
        moved = (before >= 0.5) != (after >= 0.5)
    return Stability(float(np.abs(after - before).mean()), float(moved.mean()))
