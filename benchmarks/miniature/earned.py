"""Whether complexity-normalised LaRE earns a place beside a head: what the two together tell that the head does not.

The rule, fixed before the first evaluation: it becomes an output and an input of the head if the lower ends of both
intervals of the row ``pretrained/egre`` (generators seen and unseen) are above zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.miniature.ablation import REAL, ablation
from benchmarks.miniature.protocol import GENERATORS, SEEN
from benchmarks.miniature.stages import Sets, Work
from benchmarks.miniature.stats import Complexity, Resamples
from benchmarks.miniature.sweep import complexity_of, mean_lare

HEADS = ("scratch/lare", "pretrained/image", "pretrained/egre")
Floats = NDArray[np.float64]


def beside_heads(work: Work) -> dict[str, Any]:
    """Return, by head, AUC of head and normalised LaRE together minus AUC of the head, against round trips.

    Both are put together by a logistic regression on the validation pictures, round trips against the seen generator.
    """
    kept = ablation(work)
    fit = complexity_of(work.sets("train"))
    validation, test = work.sets("validation"), work.sets("test")
    resamples = Resamples(test.group, count=work.protocol.bootstrap)
    out: dict[str, Any] = {}
    for head in HEADS:
        alone: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in GENERATORS}
        together: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in GENERATORS}
        for seed in work.protocol.seeds:
            said = {name: kept[f"{head}/{seed}/{name}"] for name in (REAL, *GENERATORS)}
            before = {name: kept[f"{head}/{seed}/validation-{name}"] for name in (REAL, SEEN)}
            model = _fitted(*(_columns(before[name], fit, validation, name) for name in (REAL, SEEN)))
            joined = {name: model.decision_function(_columns(said[name], fit, test, name)) for name in said}
            for name in GENERATORS:
                alone[name].append((said[REAL], said[name]))
                together[name].append((joined[REAL], joined[name]))
        unseen = [name for name in GENERATORS if name != SEEN]
        out[head] = {
            kind: resamples.auc_difference(
                [pair for name in names for pair in together[name]],
                [pair for name in names for pair in alone[name]],
                test.group,
                test.group,
            ).as_dict()
            for kind, names in (("seen", [SEEN]), ("unseen", unseen))
        }
    out["earns_its_place"] = all(out["pretrained/egre"][kind]["low"] > 0 for kind in ("seen", "unseen"))
    return out


def _columns(said: Floats, fit: Complexity, sets: Sets, name: str) -> Floats:
    """What the head says and normalised LaRE, [N,2]."""
    return np.stack([said, fit.normalised(mean_lare(sets, name), sets.energy[name].astype(np.float64))], axis=1)


def _fitted(real: Floats, generated: Floats) -> Pipeline:
    label = np.repeat([0, 1], [len(real), len(generated)])
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(np.concatenate([real, generated]), label)
