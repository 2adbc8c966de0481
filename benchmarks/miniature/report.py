"""Puts the miniature's kept results into one report."""

from __future__ import annotations

import io
import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniature.ablation import REAL, ablation
from benchmarks.miniature.heads import HEAD, Head, new_trunk, parameters
from benchmarks.miniature.photos import fingerprints, open_photo, split_groups
from benchmarks.miniature.protocol import GENERATORS, SEEN, SPLITS, TRUNKS, VARIANTS
from benchmarks.miniature.stages import Work
from benchmarks.miniature.stats import Floats, Resamples
from benchmarks.miniature.sweep import by_noise, by_timestep, by_timestep_trained, complexity, re_encoding
from benchmarks.miniature.why import beside_heads, why
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.machine import cpu_facts

SCHEMA = "lare2-rt/miniature/1"
PAIRS = (("egre", "image"), ("egre", "concat"), ("egre-v7", "image"), ("concat", "image"), ("lare", "image"))
_NEAR = 5  # bits of 64 in which two pictures of one photograph may differ


def report(work: Work, *, sweeps: bool) -> dict[str, Any]:
    """Return the report; whatever was not computed yet is computed now. Same kept results, same report."""
    for split in SPLITS[1:]:
        work.sets(split)
    work.say("report")
    return {
        "schema": SCHEMA,
        "protocol": work.protocol.facts(),
        "key": work.key,
        "machine": _machine(),
        "data": data_facts(work),
        "autoencoder": work.facts("autoencoder.json"),
        "unet": {size: curve[-1] for size, curve in work.facts("unet.json").items()},
        "timesteps": by_timestep(work),
        "complexity": complexity(work),
        "re_encoding": re_encoding(work),
        "ablation": ablation_table(work),
        "differences": differences(work),
        "normalised_beside_heads": beside_heads(work),
        "why": why(work) if sweeps else None,
        "noise": by_noise(work) if sweeps else None,
        "timesteps_trained": by_timestep_trained(work) if sweeps else None,
    }


def data_facts(work: Work) -> dict[str, Any]:
    """Return counts of photographs, groups and pictures, licences, and the nearest pictures of different splits."""
    of_group = split_groups(work.rows, work.protocol)
    prints = {
        split: fingerprints([open_photo(row) for row in work.rows if of_group[row.group] == split]) for split in SPLITS
    }
    counts = {}
    for split, crops in zip(SPLITS, work.protocol.crops, strict=True):
        photographs = sum(of_group[row.group] == split for row in work.rows)
        groups = sum(s == split for s in of_group.values())
        counts[split] = {"photographs": photographs, "groups": groups, "pictures": photographs * crops}
    licences = Counter(row.licence for row in work.rows)
    return {
        "splits": counts,
        "licences": dict(sorted(licences.items())),
        "nearest_bits": {
            f"{a} to {b}": nearest(prints[a], prints[b]) for i, a in enumerate(SPLITS) for b in SPLITS[i + 1 :]
        },
        "same_photograph_below_bits": _NEAR,
    }


def nearest(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> int:
    """Smallest number of differing bits between fingerprints of two splits, as they are or mirrored."""
    # Mirrored, rows run backwards and every step has the other sign.
    mirrored = ~left.reshape(-1, 8, 8)[:, :, ::-1].reshape(len(left), -1)
    return min(int(np.count_nonzero(way[:, None] != right[None], axis=2).min()) for way in (left, mirrored))


Runs = dict[str, list[tuple[Floats, Floats]]]


def ablation_table(work: Work) -> dict[str, Any]:
    """Return, by trunk and variant, AUC and ACC of every generator against round trips and against raw photographs."""
    kept = ablation(work)
    group = work.sets("test").group
    resamples = Resamples(group, count=work.protocol.bootstrap)
    out: dict[str, Any] = {}
    for trunk, variant in _trained(kept):
        trunk_size = parameters(new_trunk(0)) if variant != "lare" else 0
        sizes = {"head": parameters(Head(variant, HEAD)), "trunk": trunk_size}
        row: dict[str, Any] = {"parameters": sizes, "seeds": len(work.protocol.seeds)}
        for reference in (REAL, "real"):
            runs = _runs(work, kept, trunk, variant, reference)
            row[reference] = {name: _judged(resamples, pairs, group) for name, pairs in runs.items()}
        seen = _runs(work, kept, trunk, variant, REAL)[SEEN]
        row["auc_by_seed"] = [resamples.auc([pair], group).value for pair in seen]
        out[f"{trunk}/{variant}"] = row
    return out


def differences(work: Work) -> dict[str, Any]:
    """Return how much better one input is than another on the same pictures: AUC of the first minus that of the second.

    Against round trips, by trunk; the map alone has no trunk and is compared with both.
    """
    kept = ablation(work)
    group = work.sets("test").group
    resamples = Resamples(group, count=work.protocol.bootstrap)
    out: dict[str, Any] = {}
    for trunk in TRUNKS:
        for one, other in PAIRS:
            runs = [
                _runs(work, kept, TRUNKS[0] if variant == "lare" else trunk, variant, REAL) for variant in (one, other)
            ]
            out[f"{trunk}: {one} − {other}"] = {
                kind: resamples.auc_difference(runs[0][kind], runs[1][kind], group).as_dict()
                for kind in (SEEN, "unseen")
            }
    return out


def _trained(kept: dict[str, Floats]) -> list[tuple[str, str]]:
    """Trunk and variant of everything that was trained, in the protocol's order."""
    names = {tuple(key.split("/")[:2]) for key in kept}
    return [(trunk, variant) for trunk in TRUNKS for variant in VARIANTS if (trunk, variant) in names]


def _runs(work: Work, kept: dict[str, Floats], trunk: str, variant: str, reference: str) -> Runs:
    """Scores of ``reference`` and of every generator, a pair a seed; ``unseen`` has those of all unseen generators."""
    runs = {
        name: [
            (kept[f"{trunk}/{variant}/{seed}/{reference}"], kept[f"{trunk}/{variant}/{seed}/{name}"])
            for seed in work.protocol.seeds
        ]
        for name in GENERATORS
    }
    return {**runs, "unseen": [pair for name in GENERATORS if name != SEEN for pair in runs[name]]}


def _judged(resamples: Resamples, pairs: list[tuple[Floats, Floats]], group: NDArray[np.int64]) -> dict[str, Any]:
    return {"auc": resamples.auc(pairs, group).as_dict(), "accuracy": resamples.accuracy(pairs, group, group).as_dict()}


def _machine() -> dict[str, Any]:
    packages = ("torch", "diffusers", "open_clip_torch", "numpy", "pillow")
    return {
        "processor": cpu_facts()["cpu"],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


_COLOURS = {"real": "#1f5f8b", REAL: "#7aa6c2", "sdedit30": "#e0a030", "sdedit50": "#c1440e", "sdedit70": "#7a1f0e"}
_COLUMNS = 12


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures of a report; returns their paths."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    written = []
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": report["key"], "font.size": 9}):
        for name, plot in (("miniature-timesteps", _timesteps), ("miniature-ablation", _ablation)):
            figure = Figure(figsize=(7.2, 3.8), layout="constrained")
            plot(figure.subplots(), report)
            stream = io.BytesIO()
            figure.savefig(stream, format="svg", metadata={"Date": None})
            write_bytes(folder / f"{name}.svg", stream.getvalue())
            written.append(folder / f"{name}.svg")
    return written


def _timesteps(axes: Any, report: Mapping[str, Any]) -> None:  # noqa: ANN401 - matplotlib is untyped
    steps = [int(t) for t in report["timesteps"]]
    for name, colour in {**_COLOURS, "noise": "#777777"}.items():
        values = [report["timesteps"][str(t)][name]["mean"]["value"] for t in steps]
        axes.plot(steps, values, marker="o", markersize=3, color=colour, label=name)
    axes.set_xlabel("timestep")
    axes.set_ylabel("mean LaRE")
    axes.grid(alpha=0.3)
    axes.legend()


def _ablation(axes: Any, report: Mapping[str, Any]) -> None:  # noqa: ANN401
    rows = report["ablation"]
    places = np.arange(len(VARIANTS))
    for offset, (trunk, colour) in enumerate((("scratch", "#7aa6c2"), ("pretrained", "#1f5f8b"))):
        for place, variant in zip(places, VARIANTS, strict=True):
            row = rows.get(f"{trunk}/{variant}")
            if row is None:
                continue
            for kind, marker in (("sdedit50", "o"), ("unseen", "^")):
                area = row[REAL][kind]["auc"]
                x = place + (offset - 0.5) * 0.3 + (0.08 if kind == "unseen" else -0.08)
                label = f"{trunk}, {'unseen generators' if kind == 'unseen' else 'seen'}" if place == 0 else None
                error = [[area["value"] - area["low"]], [area["high"] - area["value"]]]
                axes.errorbar(x, area["value"], error, fmt=marker, color=colour, label=label, capsize=2, markersize=4)
    axes.axhline(0.5, color="#999999", linewidth=0.8)
    axes.set_xticks(places, VARIANTS)
    axes.set_ylabel("AUC against round trips")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7)


def contact_sheet(work: Work, folder: Path) -> Path:
    """Write rows of real pictures, their round trips and generated ones; picture n of the first rows is one crop."""
    sets = work.sets("test")
    chosen = np.linspace(0, len(sets.photo) - 1, _COLUMNS).astype(int)
    names = ("real", REAL, *GENERATORS)
    rows = [np.concatenate(list(sets.pictures[name][chosen]), axis=1) for name in names]
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(stream, "JPEG", quality=88)
    path = folder / "miniature-pictures.jpg"
    write_bytes(path, stream.getvalue())
    return path
