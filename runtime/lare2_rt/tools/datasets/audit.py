"""The leakage audit: how well facts about the files alone tell generated from real images.

A detector that is trained or measured on a set where real images are JPEGs of every size and generated ones are square
PNGs may learn the files and not the pictures. For GenImage this was worth more than 11 points of accuracy to the
detectors it was measured with (Grommelt et al., "Fake or JPEG?", arXiv 2403.17608).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..evaluation.scores import ranking
from .facts import UNKNOWN_QUALITY
from .table import GENERATED, REAL, Index

Float64 = NDArray[np.float64]
FactName = Literal["size", "exact_size", "square", "aspect", "format", "jpeg_quality", "bytes_per_pixel"]
Verdict = Literal["leak", "content", "none", "unknown"]
LEAK_FROM = 0.05  # distances below this are too small to matter, however large the set
_RARE = 0.01  # sizes with a smaller share of the images are one category
# What decides a file's bytes besides the picture.
_CONTAINER: frozenset[FactName] = frozenset({"size", "exact_size", "format", "jpeg_quality"})

MEANING: dict[FactName, str] = {
    "size": "width × height: generators write fixed sizes, cameras and the web do not",
    "exact_size": (
        "width and height as categories, best order: finds fixed sizes that lie among the others, which 'size' cannot"
    ),
    "square": "width = height or not: most generators write squares, photographs rarely are",
    "aspect": "short side / long side: the shape, which squashing to a square shows in the pixels",
    "format": "JPEG, PNG, … as categories, best order: published sets often have real JPEGs and generated PNGs",
    "jpeg_quality": "of the JPEGs among them: a detector may learn the traces of compression, not the generator's",
    "bytes_per_pixel": (
        "how far the file was compressed; where sizes, formats and qualities are alike, how busy the picture is, which "
        "is no leak"
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """How well one fact alone tells generated from real.

    Attributes:
        fact: which one; meaning: in words.
        real, generated: numbers of images that have it.
        auc: area under the ROC curve of the fact as a score for "generated" (class 1), 0..1: 0.5 tells nothing, 0 tells
            as much as 1. Categories are ordered by their share of generated images, so theirs is 0.5 or more. None
            where one class has no such image.
        distance: of the AUC from 0.5, 0..0.5.
        chance: distance that a fact without any relation to the label stays below in 95 of 100 sets of this size.
        verdict: ``leak``: the distance is at least 0.05 and more than chance. ``content``: so it is for bytes per
            pixel, but sizes, formats and qualities are alike, so the pictures themselves differ. ``none``: it is not.
            ``unknown``: there is no AUC.
    """

    fact: FactName
    meaning: str
    real: int
    generated: int
    auc: float | None
    distance: float | None
    chance: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GroupAudit:
    """The findings over one group of images: ``all``, or a split by its name (``none`` for images without one)."""

    group: str
    real: int
    generated: int
    findings: tuple[Finding, ...]

    def finding(self, fact: FactName) -> Finding:
        """Return the finding about one fact."""
        return next(finding for finding in self.findings if finding.fact == fact)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The audit of a set: the whole first, then each split if there are several."""

    groups: tuple[GroupAudit, ...]

    def group(self, name: str) -> GroupAudit:
        """Return one group; raises KeyError."""
        return {group.group: group for group in self.groups}[name]

    @property
    def leaks(self) -> tuple[tuple[str, Finding], ...]:
        """(group, finding) of every leak."""
        return tuple((g.group, finding) for g in self.groups for finding in g.findings if finding.verdict == "leak")


def audit_index(index: Index) -> AuditReport:
    """Audit the decodable images of an index, over the whole and within each split."""
    good = index.decodable
    names = sorted({name for name, fine in zip(index.split, good, strict=True) if fine})
    groups = [_audit_group(index, good, "all")]
    if any(names):
        splits = np.array(index.split)
        groups.extend(_audit_group(index, good & (splits == name), name or "none") for name in names)
    return AuditReport(tuple(groups))


def _audit_group(index: Index, mask: NDArray[np.bool_], name: str) -> GroupAudit:
    rows = np.flatnonzero(mask)
    labels = index.label[rows]
    findings = [
        _finding(fact, measure(index, rows), labels, categories=categories)
        for fact, (measure, categories) in _FACTS.items()
    ]
    leaks = {finding.fact for finding in findings if finding.verdict == "leak"}
    if "bytes_per_pixel" in leaks and not leaks & _CONTAINER:
        findings = [replace(f, verdict="content") if f.fact == "bytes_per_pixel" else f for f in findings]
    return GroupAudit(name, int((labels == REAL).sum()), int((labels == GENERATED).sum()), tuple(findings))


def _finding(fact: FactName, values: Float64, labels: NDArray[np.int8], *, categories: bool) -> Finding:
    known = np.isfinite(values)
    label, score = labels[known], values[known]
    real, generated = int((label == REAL).sum()), int((label == GENERATED).sum())
    if not real or not generated:
        return Finding(fact, MEANING[fact], real, generated, None, None, None, "unknown")
    freedom = 1
    if categories:
        _, where = np.unique(score, return_inverse=True)
        share = np.bincount(where, weights=label == GENERATED) / np.bincount(where)
        score, freedom = share[where], max(1, len(share) - 1)
    auc = ranking(label == GENERATED, score).curve().auc()
    distance = abs(auc - 0.5)
    chance = _chance(real, generated, freedom)
    verdict: Verdict = "leak" if distance >= LEAK_FROM and distance > chance else "none"
    return Finding(fact, MEANING[fact], real, generated, auc, distance, chance, verdict)


def _chance(real: int, generated: int, freedom: int) -> float:
    """95 % bound of |AUC − 0.5| under no relation.

    The Mann-Whitney standard error without ties, which is the largest; the best order of k categories has a chi-squared
    statistic with k − 1 degrees of freedom (Wilson-Hilferty approximation of its quantile).
    """
    error = math.sqrt((real + generated + 1) / (12 * real * generated))
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + 1.6449 * math.sqrt(spread)) ** 3
    return min(0.5, error * math.sqrt(quantile))


def _area(index: Index, rows: NDArray[np.intp]) -> Float64:
    return index.width[rows].astype(np.float64) * index.height[rows]


def _exact_size(index: Index, rows: NDArray[np.intp]) -> Float64:
    """Categories of at least ``_RARE`` of the images; all rarer ones are one, as each alone would be pure by chance."""
    pairs = index.width[rows].astype(np.int64) << 32 | index.height[rows]
    sizes, where, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    rare = counts < max(2.0, _RARE * len(rows))
    return np.where(rare, len(sizes), np.arange(len(sizes)))[where].astype(np.float64)


def _aspect(index: Index, rows: NDArray[np.intp]) -> Float64:
    short, long = np.minimum(index.width[rows], index.height[rows]), np.maximum(index.width[rows], index.height[rows])
    return np.asarray(short / np.maximum(long, 1), np.float64)


def _format(index: Index, rows: NDArray[np.intp]) -> Float64:
    names = np.array(index.format, np.str_)[rows]
    return np.asarray(np.unique(names, return_inverse=True)[1], np.float64)


def _jpeg_quality(index: Index, rows: NDArray[np.intp]) -> Float64:
    quality = index.jpeg_quality[rows].astype(np.float64)
    return np.where(quality == UNKNOWN_QUALITY, np.nan, quality)


def _bytes_per_pixel(index: Index, rows: NDArray[np.intp]) -> Float64:
    return np.asarray(index.bytes[rows] / np.maximum(_area(index, rows), 1), np.float64)


# How each fact is measured, NaN where an image has none, and whether the numbers are those of categories.
_FACTS: dict[FactName, tuple[Callable[[Index, NDArray[np.intp]], Float64], bool]] = {
    "size": (_area, False),
    "exact_size": (_exact_size, True),
    "square": (lambda index, rows: np.asarray(index.width[rows] == index.height[rows], np.float64), False),
    "aspect": (_aspect, False),
    "format": (_format, True),
    "jpeg_quality": (_jpeg_quality, False),
    "bytes_per_pixel": (_bytes_per_pixel, False),
}


def count_by(index: Index) -> Counter[tuple[str, str]]:
    """Return the number of images by (split, generator); real ones have generator ``real`` here."""
    return Counter((split, generator or "real") for split, generator in zip(index.split, index.generator, strict=True))
