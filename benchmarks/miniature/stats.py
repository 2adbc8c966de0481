"""Statistics of the miniature: intervals over photographs, paired differences, and what is left without complexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]
Runs = Sequence[tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the ends of its 95 % interval over resampled groups of photographs."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return plain types for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Resamples:
    """Weights of groups in bootstrap samples: float64 [R,G], row r counts how often each group was drawn."""

    def __init__(self, groups: Groups, *, count: int, seed: int = 0) -> None:
        self.names = np.unique(groups)
        random = np.random.Generator(np.random.Philox(seed))
        drawn = random.integers(0, len(self.names), (count, len(self.names)))
        self.weights = np.stack([np.bincount(row, minlength=len(self.names)) for row in drawn]).astype(np.float64)

    def index(self, groups: Groups) -> Groups:
        """Return the column of each group."""
        return np.searchsorted(self.names, groups)

    def interval(self, value: float, resampled: Floats) -> Estimate:
        """Put a value together with its percentile interval."""
        low, high = np.percentile(resampled[np.isfinite(resampled)], [2.5, 97.5])
        return Estimate(value, float(low), float(high))

    def mean(self, values: Floats, groups: Groups) -> Estimate:
        """Mean of values, photographs resampled."""
        return self.interval(float(values.mean()), self._means(values, groups))

    def _means(self, values: Floats, groups: Groups) -> Floats:
        size = len(self.names)
        sums = np.bincount(self.index(groups), values, size)
        counts = np.bincount(self.index(groups), minlength=size)
        means: Floats = self.weights @ sums / (self.weights @ counts)
        return means

    def auc(self, runs: Runs, negative: Groups, positive: Groups | None = None) -> Estimate:
        """Mean over runs (seeds) of the area under the curve of (scores of negatives, scores of positives).

        Args:
            negative, positive: group of each picture; the same for both where one is given.
        """
        return self.interval(*self._auc(runs, negative, positive))

    def auc_difference(self, runs: Runs, others: Runs, negative: Groups, positive: Groups | None = None) -> Estimate:
        """The area of ``runs`` minus that of ``others`` on the same pictures, photographs resampled for both alike."""
        value, resampled = self._auc(runs, negative, positive)
        other, other_resampled = self._auc(others, negative, positive)
        return self.interval(value - other, resampled - other_resampled)

    def _auc(self, runs: Runs, negative: Groups, positive: Groups | None) -> tuple[float, Floats]:
        size = len(self.names)
        positive = negative if positive is None else positive
        rows, columns = self.index(negative), self.index(positive)
        wins = np.zeros((size, size))
        for below, above in runs:
            beaten = (below[:, None] < above[None]) + 0.5 * (below[:, None] == above[None])
            by_row = np.stack([np.bincount(columns, line, size) for line in beaten])
            np.add.at(wins, rows, by_row / len(runs))
        n_rows, n_columns = np.bincount(rows, minlength=size), np.bincount(columns, minlength=size)
        value = wins.sum() / (n_rows.sum() * n_columns.sum())
        w = self.weights
        resampled = np.einsum("rg,gh,rh->r", w, wins, w) / ((w @ n_rows) * (w @ n_columns))
        return float(value), resampled

    def accuracy(self, runs: Runs, negative: Groups, positive: Groups) -> Estimate:
        """Mean over runs of the share of right answers at probability 0.5, both classes weighing the same."""
        false = np.mean([(below > 0).astype(np.float64) for below, _ in runs], axis=0)
        true = np.mean([(above > 0).astype(np.float64) for _, above in runs], axis=0)
        both = (1 - self._means(false, negative) + self._means(true, positive)) / 2
        return self.interval(float((1 - false.mean() + true.mean()) / 2), both)


def auc(negative: Floats, positive: Floats) -> float:
    """Area under the curve; ties count half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / 2 / len(negative))


def cohens_d(values: Floats, against: Floats) -> float:
    """Difference of the means in pooled standard deviations."""
    return float((values.mean() - against.mean()) / np.sqrt((values.var() + against.var()) / 2))


def paired_dz(values: Floats, against: Floats) -> float:
    """Mean difference of pairs in its own standard deviations; row n of both is the same photograph's crop."""
    difference = values - against
    return float(difference.mean() / difference.std())


class Complexity:
    """Log mean LaRE as a quadratic of log latent gradient energy, fitted on pictures that are not generated.

    What is left of log mean LaRE is LaRE that complexity does not explain: "complexity-normalised LaRE". Ours, not the
    paper's.
    """

    def __init__(self, lare: Floats, energy: Floats) -> None:
        self.coefficients = np.polyfit(np.log(energy), np.log(lare), 2)
        self.correlation = float(np.corrcoef(np.log(energy), np.log(lare))[0, 1])

    def normalised(self, lare: Floats, energy: Floats) -> Floats:
        """Return log mean LaRE minus its expectation, per picture."""
        left: Floats = np.log(lare) - np.polyval(self.coefficients, np.log(energy))
        return left
