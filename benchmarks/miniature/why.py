"""Why EGRE leads or does not: one thing changed at a time, on the frozen pretrained trunk; and whether
complexity-normalised LaRE earns a place beside a head: what the two together tell that the head does not.

The rule, fixed before the first evaluation: it becomes an output and an input of the head if the lower ends of both
intervals of the row ``pretrained/egre`` (generators seen and unseen) are above zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.miniature.ablation import REAL, ablation, examples, frozen_features, scale_of
from benchmarks.miniature.heads import Classifier, Examples, Features, Head, scores, train_head
from benchmarks.miniature.protocol import GENERATORS, SEEN
from benchmarks.miniature.stages import Sets, Work
from benchmarks.miniature.stats import Complexity, Floats, Resamples
from benchmarks.miniature.sweep import complexity_of, mean_lare

HEADS = ("scratch/lare", "pretrained/image", "pretrained/egre")
VARIANTS = ("image", "lare", "concat", "egre", "egre-v7")


@dataclass(frozen=True, slots=True)
class Change:
    """What differs from the ablation.

    Attributes:
        scale: factor on the maps, after their division by the mean; epochs: factor; rate: of AdamW; groups: share of
            the groups of training photographs that is used; blind: every picture gets the mean map, so that what is
            left is what a head gains from its size and not from LaRE.
    """

    scale: float = 1.0
    epochs: int = 1
    rate: float = 2e-3
    groups: float = 1.0
    blind: bool = False


CHANGES = {
    "as in the ablation": Change(),
    "the mean map for every picture": Change(blind=True),
    "half the groups of photographs": Change(groups=0.5),
    "a quarter of the groups": Change(groups=0.25),
    "map a quarter as large": Change(scale=0.25),
    "map three times as large": Change(scale=3.0),
    "four times as many epochs": Change(epochs=4),
    "learning rate 1e-4, the official one": Change(rate=1e-4),
}


def why(work: Work) -> dict[str, Any]:
    """Return, by change and variant, AUC against round trips on the seen and the unseen generators."""
    return dict(work.once("why.json", partial(_why, work)))


def _why(work: Work) -> dict[str, Any]:
    test = work.sets("test")
    resamples = Resamples(test.group, count=work.protocol.bootstrap)
    # A killed run goes on behind the last change.
    found: dict[str, Any] = work.once("why-partial.json", dict)
    for name, change in CHANGES.items():
        if name in found:
            continue
        for variant in VARIANTS:
            kept = [_scores(work, variant, change, seed) for seed in work.protocol.seeds]
            pairs = {g: [(k[REAL], k[g]) for k in kept] for g in GENERATORS}
            unseen = [pair for g in GENERATORS if g != SEEN for pair in pairs[g]]
            found.setdefault(name, {})[variant] = {
                kind: resamples.auc(runs, test.group).as_dict()
                for kind, runs in (("seen", pairs[SEEN]), ("unseen", unseen))
            }
        work.say(f"why: {name}")
        work.note("why-partial.json", found)
    return found


def _scores(work: Work, variant: str, change: Change, seed: int) -> dict[str, Floats]:
    train, test = work.sets("train"), work.sets("test")
    scale = scale_of(train) / change.scale
    given = examples(train, (REAL, SEEN), scale)
    features = frozen_features(work, "train", (REAL, SEEN)) if variant != "lare" else None
    mean_map = given.lare.mean(0, keepdim=True)
    whole = len(given)
    given, features = _some_groups(given, features, change.groups, seed)
    given = _blinded(given, mean_map) if change.blind else given
    torch.manual_seed(seed)
    classifier = Classifier(Head(variant), None)
    # As many steps whatever the number of pictures, so that only their variety changes.
    epochs = round(work.protocol.epochs * change.epochs * whole / len(given))
    train_head(classifier, given, features, epochs=epochs, batch=work.protocol.batch, seed=seed, rate=change.rate)
    kept = {}
    for name in (REAL, *GENERATORS):
        judged = examples(test, (name,), scale)
        judged = _blinded(judged, mean_map) if change.blind else judged
        kept[name] = scores(classifier, judged, frozen_features(work, "test", (name,)) if variant != "lare" else None)
    return kept


def _blinded(given: Examples, mean_map: Tensor) -> Examples:
    return replace(given, lare=mean_map.expand_as(given.lare).clone())


def _some_groups(
    given: Examples, features: Features | None, share: float, seed: int
) -> tuple[Examples, Features | None]:
    if share == 1:
        return given, features
    groups = np.unique(given.group)
    kept = np.random.Generator(np.random.Philox(seed)).permutation(groups)[: max(1, round(len(groups) * share))]
    rows = torch.from_numpy(np.flatnonzero(np.isin(given.group, kept)))
    fewer = replace(
        given,
        pixels=given.pixels[rows],
        lare=given.lare[rows],
        label=given.label[rows],
        group=given.group[rows.numpy()],
    )
    if features is None:
        return fewer, None
    return fewer, Features(features.embedding[:, rows], features.layer3[:, rows])


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
