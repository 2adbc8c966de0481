"""What timestep, number of draws and kind of noise are worth: the mean of LaRE, and a network on the map."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.miniature.ablation import REAL, scale_of
from benchmarks.miniature.heads import Classifier, Examples, Head, scores, train_head
from benchmarks.miniature.protocol import ENSEMBLES, GENERATORS, JPEG_QUALITY, SEEN, TIMESTEP, TIMESTEPS
from benchmarks.miniature.stages import Sets, Work
from benchmarks.miniature.stats import Complexity, Resamples, cohens_d, paired_dz
from benchmarks.miniature.unet import as_the_runtime_sees, noises
from lare2_rt.bundle.noise import Noise

_LARGEST = max(ENSEMBLES)
Maps = NDArray[np.float32]


def by_timestep(work: Work) -> dict[str, Any]:
    """Return, for every timestep and set of the test pictures, mean LaRE and how it differs from real pictures."""
    return dict(work.once("timesteps.json", partial(_by_timestep, work)))


def _by_timestep(work: Work) -> dict[str, Any]:
    sets = work.sets("test")
    chosen = _some(sets, work.protocol.sweep)
    noise = noises(4)
    latents = {n: work.extraction.encode(as_the_runtime_sees(p[chosen]), noise) for n, p in sets.pictures.items()}
    seen = work.seen_whole()
    own = np.linspace(0, len(seen.photo) - 1, work.protocol.sweep).astype(int)
    latents["memorised"] = work.extraction.encode(as_the_runtime_sees(seen.pixels[own]), noise)
    groups = {name: seen.group[own] if name == "memorised" else sets.group[chosen] for name in latents}
    resamples = Resamples(np.concatenate(list(groups.values())), count=work.protocol.bootstrap)
    found: dict[str, Any] = {}
    for timestep in TIMESTEPS:
        means = {
            name: work.extraction.maps(latent, noise.ensemble, timestep).mean((1, 2, 3)).astype(np.float64)
            for name, latent in latents.items()
        }
        found[str(timestep)] = {name: _against(resamples, name, means, groups) for name in means}
        work.say(f"timestep {timestep}")
    return found


def _against(
    resamples: Resamples, name: str, means: dict[str, NDArray[np.float64]], groups: dict[str, NDArray[np.int64]]
) -> dict[str, Any]:
    """Areas are of minus LaRE: above one half where generated pictures have the smaller error, as the paper says."""
    values = means[name]
    out: dict[str, Any] = {"mean": resamples.mean(values, groups[name]).as_dict(), "deviation": float(values.std())}
    for reference in ("real", REAL):
        against = means[reference]
        if name != reference:
            out[f"d_{reference}"] = cohens_d(values, against)
            area = resamples.auc([(-against, -values)], groups[reference], groups[name])
            out[f"auc_{reference}"] = area.as_dict()
            if name not in ("memorised", "noise"):  # the others are made of the very same crops
                out[f"dz_{reference}"] = paired_dz(values, against)
    return out


def re_encoding(work: Work) -> dict[str, Any]:
    """Return what JPEG does to mean LaRE, and to its area, where both classes are re-encoded alike."""
    return dict(work.once("re-encoding.json", partial(_re_encoding, work)))


def _re_encoding(work: Work) -> dict[str, Any]:
    sets = work.sets("test")
    chosen = _some(sets, work.protocol.sweep)
    group = sets.group[chosen]
    resamples = Resamples(group, count=work.protocol.bootstrap)
    noise = noises(4)
    plain = {name: mean_lare(sets, name)[chosen] for name in sets.pictures}
    coded = {}
    for name, pixels in sets.pictures.items():
        latent = work.extraction.encode(as_the_runtime_sees(_as_jpeg(pixels[chosen])), noise)
        coded[name] = work.extraction.maps(latent, noise.ensemble, TIMESTEP).mean((1, 2, 3)).astype(np.float64)
    found: dict[str, Any] = {}
    for name in sets.pictures:
        found[name] = {"plain": float(plain[name].mean()), "jpeg": resamples.mean(coded[name], group).as_dict()}
        if name != REAL:
            for kind, means in (("plain", plain), ("jpeg", coded)):
                area = resamples.auc([(-means[REAL], -means[name])], group)
                found[name][f"auc_{kind}"] = area.as_dict()
    return found


def _as_jpeg(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = []
    for picture in pixels:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
        out.append(np.asarray(Image.open(stream)))
    return np.stack(out)


def by_noise(work: Work) -> dict[str, Any]:
    """Return areas for 1 to 8 fixed draws and for draws of every picture's own, of the mean and of a network."""
    return dict(work.once("noise.json", partial(_by_noise, work)))


def _by_noise(work: Work) -> dict[str, Any]:
    noise = noises(_LARGEST)
    latents = _latents(work, noise)
    maps = {kind: _errors(work, kind, latents, noise) for kind in ("fixed", "per-image")}
    found: dict[str, Any] = {}
    for count in ENSEMBLES:
        found[f"fixed {count}"] = _judge(work, {k: v[:, :count].mean(1) for k, v in maps["fixed"].items()})
    found["per-image 4"] = _judge(work, {k: v[:, :4].mean(1) for k, v in maps["per-image"].items()})
    return found


def by_timestep_trained(work: Work) -> dict[str, Any]:
    """Return areas of a network on maps of several timesteps, four fixed draws: the paper's Fig. 6 in miniature."""
    return dict(work.once("timesteps-trained.json", partial(_by_timestep_trained, work)))


def _by_timestep_trained(work: Work) -> dict[str, Any]:
    found = {}
    noise = noises(4)
    latents = _latents(work, noise)
    for timestep in (50, TIMESTEP, 400, 800):
        maps = {key: work.extraction.maps(latent, noise.ensemble, timestep) for key, latent in latents.items()}
        found[str(timestep)] = _judge(work, maps)
        work.say(f"network on maps of timestep {timestep}")
    return found


def _wanted(work: Work) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Split, set and pictures: half of the training pictures and as many test pictures as the sweep takes."""
    train, test = work.sets("train"), work.sets("test")
    half = np.arange(0, len(train.photo), 2)
    few = _some(test, 2 * work.protocol.sweep)
    chosen = [("train", name, half) for name in (REAL, SEEN)]
    return chosen + [("test", name, few) for name in (REAL, *GENERATORS)]


def _latents(work: Work, noise: Noise) -> dict[str, Tensor]:
    """Latents [N,4,32,32] of every wanted set, by ``split/name``."""
    return {
        f"{split}/{name}": work.extraction.encode(as_the_runtime_sees(work.sets(split).pictures[name][chosen]), noise)
        for split, name, chosen in _wanted(work)
    }


def _errors(work: Work, kind: str, latents: dict[str, Tensor], noise: Noise) -> dict[str, Maps]:
    """Squared errors [N,E,4,32,32] of every set: the same draws for all, or each picture's own four."""
    found = {}
    for number, (key, latent) in enumerate(latents.items()):
        if kind == "fixed":
            draws = noise.ensemble[None].repeat(len(latent), 0)
        else:
            random = np.random.Generator(np.random.Philox(key=[number, 77]))
            draws = random.standard_normal((len(latent), 4, *noise.ensemble.shape[1:]), np.float32)
        found[key] = work.extraction.errors(latent, draws, TIMESTEP)
        work.say(f"{kind} noise: {key.replace('/', ', ')}")
    return found


def _judge(work: Work, maps: dict[str, Maps]) -> dict[str, Any]:
    """Areas against round trips on the test pictures: of minus the mean, and of a network on the map, by generator."""
    train, test = work.sets("train"), work.sets("test")
    groups = {split: s.group[_chosen(work, split)] for split, s in (("train", train), ("test", test))}
    scale = scale_of(train)

    def given(split: str, names: tuple[str, ...]) -> Examples:
        stacked = np.concatenate([maps[f"{split}/{name}"] for name in names])
        label = torch.tensor([int(n in GENERATORS) for n in names for _ in range(len(maps[f"{split}/{n}"]))])
        nothing = torch.zeros(len(stacked), 1, 1, 3, dtype=torch.uint8)
        return Examples(nothing, torch.from_numpy(stacked) / scale, label, np.concatenate([groups[split]] * len(names)))

    networks = []
    for seed in work.protocol.seeds:
        torch.manual_seed(seed)
        networks.append(Classifier(Head("lare"), None))
        learned = given("train", (REAL, SEEN))
        train_head(networks[-1], learned, None, epochs=work.protocol.epochs, batch=work.protocol.batch, seed=seed)
    resamples = Resamples(groups["test"], count=work.protocol.bootstrap)
    real = [scores(network, given("test", (REAL,)), None) for network in networks]
    out: dict[str, Any] = {}
    for name in GENERATORS:
        runs = [(r, scores(n, given("test", (name,)), None)) for r, n in zip(real, networks, strict=True)]
        means = [-maps[f"test/{which}"].mean((1, 2, 3)).astype(np.float64) for which in (REAL, name)]
        plain = resamples.auc([(means[0], means[1])], groups["test"])
        area = resamples.auc(runs, groups["test"])
        out[name] = {"mean": plain.as_dict(), "network": area.as_dict()}
    return out


def _chosen(work: Work, split: str) -> NDArray[np.int64]:
    return next(chosen for s, _, chosen in _wanted(work) if s == split)


def complexity(work: Work) -> dict[str, Any]:
    """Return how much of mean LaRE is complexity, and areas with it, without it, and of complexity alone."""
    train, test = work.sets("train"), work.sets("test")
    resamples = Resamples(test.group, count=work.protocol.bootstrap)
    fit = complexity_of(train)
    out: dict[str, Any] = {"correlation_on_training_pictures": fit.correlation, "quadratic": list(fit.coefficients)}
    kinds: dict[str, Callable[[Sets, str], NDArray[np.float64]]] = {
        "energy": lambda s, n: s.energy[n].astype(np.float64),
        "lare": mean_lare,
        "normalised": lambda s, n: fit.normalised(mean_lare(s, n), s.energy[n].astype(np.float64)),
    }
    for reference in ("real", REAL):
        for kind, value in kinds.items():
            for name in GENERATORS:
                runs = [(-value(test, reference), -value(test, name))]
                area = resamples.auc(runs, test.group)
                out.setdefault(reference, {}).setdefault(kind, {})[name] = area.as_dict()
    return out


def complexity_of(train: Sets) -> Complexity:
    """Fit what complexity explains on the training pictures that are not generated."""
    return Complexity(
        np.concatenate([mean_lare(train, name) for name in ("real", REAL)]),
        np.concatenate([train.energy[name].astype(np.float64) for name in ("real", REAL)]),
    )


def mean_lare(sets: Sets, name: str) -> NDArray[np.float64]:
    """Return mean LaRE of every picture of a set, float64 [N]."""
    values: NDArray[np.float64] = sets.lare[name].mean((1, 2, 3)).astype(np.float64)
    return values


def _some(sets: Sets, count: int) -> NDArray[np.int64]:
    """Evenly spread pictures, so that all photographs take part."""
    return np.unique(np.linspace(0, len(sets.photo) - 1, min(count, len(sets.photo))).astype(np.int64))
