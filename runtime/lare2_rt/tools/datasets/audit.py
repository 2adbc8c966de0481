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
from numpy.typing import ArrayLike, NDArray

from .jpeg import UNKNOWN_QUALITY
from .table import GENERATED, REAL, Index

Float64 = NDArray[np.float64]
FactName = Literal["size", "exact_size", "square", "aspect", "format", "jpeg_quality", "bytes_per_pixel"]
Verdict = Literal["leak", "content", "none", "unknown"]
LEAK_FROM = 0.05  # distances below this are too small to matter, however large the set
_RARE = 0.01  # sizes with a smaller share of the images are one category
_EVERYTHING = "all"
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
        for group in self.groups:
            if group.group == name:
                return group
        raise KeyError(name)

    @property
    def leaks(self) -> tuple[tuple[str, Finding], ...]:
        """(group, finding) of every leak."""
        return tuple((g.group, finding) for g in self.groups for finding in g.findings if finding.verdict == "leak")


def audit_index(index: Index) -> AuditReport:
    """Audit the decodable images of an index, over the whole and within each split."""
    good = index.decodable
    names = sorted({name for name, fine in zip(index.split, good, strict=True) if fine})
    groups = [_audit_group(index, good, _EVERYTHING)]
    if names != [""] and len(names) > 0:
        splits = np.array(index.split)
        groups.extend(_audit_group(index, good & (splits == name), name or "none") for name in names)
    return AuditReport(tuple(groups))


def rank_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve, as scikit-learn's ``roc_auc_score`` defines it.

    Args:
        labels: n of 0 and 1 (the positive class), both present.
        scores: n finite numbers; equal ones count half.

    Raises:
        ValueError: one class is missing or the lengths differ.
    """
    positive = np.asarray(labels) == GENERATED
    values = np.asarray(scores, dtype=np.float64)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if positive.shape != values.shape or not ones or not zeros:
        raise ValueError("an AUC needs one score per label and labels of both classes")
    # Mann-Whitney: the mean rank of equal scores gives each pair of them a half.
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[where][positive].sum() - ones * (ones + 1) / 2) / ones / zeros)


def _audit_group(index: Index, mask: NDArray[np.bool_], name: str) -> GroupAudit:
    rows = np.flatnonzero(mask)
    labels = index.label[rows]
    findings = tuple(_finding(fact, measure(index, rows), labels) for fact, measure in _FACTS.items())
    if not any(finding.verdict == "leak" and finding.fact in _CONTAINER for finding in findings):
        findings = tuple(
            replace(f, verdict="content") if f.fact == "bytes_per_pixel" and f.verdict == "leak" else f
            for f in findings
        )
    return GroupAudit(name, int((labels == REAL).sum()), int((labels == GENERATED).sum()), findings)


@dataclass(frozen=True, slots=True)
class _Values:
    """A fact of every image: NaN where it has none; ``categories`` when they are numbers of categories."""

    values: Float64
    categories: bool = False


def _finding(fact: FactName, values: _Values, labels: NDArray[np.int8]) -> Finding:
    known = np.isfinite(values.values)
    label, score = labels[known], values.values[known]
    real, generated = int((label == REAL).sum()), int((label == GENERATED).sum())
    if not real or not generated:
        return Finding(fact, MEANING[fact], real, generated, None, None, None, "unknown")
    freedom = 1
    if values.categories:
        _, where = np.unique(score, return_inverse=True)
        share = np.bincount(where, weights=label == GENERATED) / np.bincount(where)
        score, freedom = share[where], max(1, len(share) - 1)
    auc = rank_auc(label, score)
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


def _size(index: Index, rows: NDArray[np.intp]) -> _Values:
    return _Values(_area(index, rows))


def _area(index: Index, rows: NDArray[np.intp]) -> Float64:
    return index.width[rows].astype(np.float64) * index.height[rows]


def _exact_size(index: Index, rows: NDArray[np.intp]) -> _Values:
    """Categories of at least ``_RARE`` of the images; all rarer ones are one, as each alone would be pure by chance."""
    pairs = index.width[rows].astype(np.int64) << 32 | index.height[rows]
    sizes, where, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    rare = counts < max(2.0, _RARE * len(rows))
    number = np.where(rare, len(sizes), np.arange(len(sizes)))
    return _Values(number[where].astype(np.float64), categories=True)


def _square(index: Index, rows: NDArray[np.intp]) -> _Values:
    return _Values((index.width[rows] == index.height[rows]).astype(np.float64))


def _aspect(index: Index, rows: NDArray[np.intp]) -> _Values:
    short, long = np.minimum(index.width[rows], index.height[rows]), np.maximum(index.width[rows], index.height[rows])
    return _Values(short / np.maximum(long, 1))


def _format(index: Index, rows: NDArray[np.intp]) -> _Values:
    names = np.array(index.format)[rows] if len(rows) else np.array([], dtype=np.str_)
    return _Values(np.unique(names, return_inverse=True)[1].astype(np.float64), categories=True)


def _jpeg_quality(index: Index, rows: NDArray[np.intp]) -> _Values:
    quality = index.jpeg_quality[rows].astype(np.float64)
    return _Values(np.where(quality == UNKNOWN_QUALITY, np.nan, quality))


def _bytes_per_pixel(index: Index, rows: NDArray[np.intp]) -> _Values:
    return _Values(index.bytes[rows] / np.maximum(_area(index, rows), 1))


_FACTS: dict[FactName, Callable[[Index, NDArray[np.intp]], _Values]] = {
    "size": _size,
    "exact_size": _exact_size,
    "square": _square,
    "aspect": _aspect,
    "format": _format,
    "jpeg_quality": _jpeg_quality,
    "bytes_per_pixel": _bytes_per_pixel,
}


def count_by(index: Index) -> Counter[tuple[str, str]]:
    """Return the number of images by (split, generator); real ones have generator ``real`` here."""
    return Counter((split, generator or "real") for split, generator in zip(index.split, index.generator, strict=True))
