"""What every row's technique is once it is loaded: something that runs one image and tells its components' times."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.kept import Arrays
from lare2_rt.bundle.manifest import COMPONENTS

if TYPE_CHECKING:
    from lare2_rt.bundle.noise import Noise
    from lare2_rt.pixels.preprocess import Pixels


class Laps:
    """Seconds of every component in the last run; a clock is read twice a component, which is nothing beside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, component: str) -> Iterator[None]:
        """Time one component, by its name in the manifest."""
        begin = time.perf_counter()
        yield
        self.seconds[component] = time.perf_counter() - begin


class Runner:
    """One technique, loaded.

    Attributes:
        facts: settings that were really used, for the report; laps: what each component of the last run took.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts, self.laps = dict(facts), Laps()

    def run(self, picture: Pixels) -> Arrays:
        """From uint8 pixels in memory to arrays in memory: ``lare`` [1,4,h,w], ``logits`` [1,2], and more if it has."""
        raise NotImplementedError

    def check(self, picture: Pixels) -> Arrays:
        """The same with the bundle's noise, whatever noise ``run`` takes."""
        return self.run(picture)


Call = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]


def run_graphs(
    calls: Mapping[str, Call], image: NDArray[np.uint8], crop: NDArray[np.uint8], noise: Noise, laps: Laps
) -> Arrays:
    """Run our four components on a batch, each from named arrays to its outputs in the manifest's order."""
    with laps("vae_encoder"):
        latent = calls["vae_encoder"]({"image": image, "posterior_noise": noise.posterior})[0]
    with laps("unet_step"):
        lare, *prediction = calls["unet_step"]({"latent": latent, "noise": noise.ensemble})
    with laps("clip_backbone"):
        embedding, layer3 = calls["clip_backbone"]({"crop": crop})
    with laps("egre"):
        logits = calls["egre"]({"lare": lare, "embedding": embedding, "layer3": layer3})[0]
    probed = {"noise_prediction": prediction[0]} if prediction else {}
    return {"latent": latent, **probed, "lare": lare, "embedding": embedding, "logits": logits}


def component_seconds(runner: Runner, pictures: Sequence[Pixels], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every component in every run but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in COMPONENTS}
    for turn in range(repeats + 1):
        runner.run(pictures[turn % len(pictures)])
        for name, times in seconds.items():
            times.append(runner.laps.seconds[name])
    return {name: times[1:] for name, times in seconds.items()}
