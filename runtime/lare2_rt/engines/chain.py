"""The chain VAE encoder → UNet step → CLIP backbone → EGRE for engines that run one component at a time; its checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import ComponentName, TensorSpec, Variant
from ..bundle.noise import Noise
from ..errors import EngineError
from .contract import ChainOutput, EngineInfo, Float32, UInt8, WindowOutput

Arrays = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[np.float32]]
Component = Callable[[Arrays], Outputs]


class ComponentChain:
    """Implements ``OpenEngine`` over four callables, each from named input arrays to named output arrays."""

    def __init__(
        self,
        info: EngineInfo,
        components: Mapping[ComponentName, Component],
        *,
        noise: Noise,
        close: Callable[[], None],
    ) -> None:
        self._info = info
        self._components = dict(components)
        self._noise = noise
        self._close = close

    @property
    def info(self) -> EngineInfo:
        """What was opened."""
        return self._info

    @property
    def components(self) -> Mapping[ComponentName, Component]:
        """The components by name, for callers that need intermediate results; empty once it is closed."""
        return self._components

    def run(self, image: UInt8, crop: UInt8, *, noise: Noise | None = None) -> ChainOutput:
        """See ``OpenEngine.run``."""
        noise = self._noise if noise is None else noise
        timings: dict[str, float] = {}
        latent = self._call("vae_encoder", {"image": image, "posterior_noise": noise.posterior}, timings)["latent"]
        lare = self._call("unet_step", {"latent": latent, "noise": noise.ensemble}, timings)["lare"]  # [B,4,h,w]
        clip, head = self._judge(lare, crop, timings)
        return ChainOutput(lare, clip["embedding"], head["logits"], head["attention"], timings)

    def run_window(self, lare: Float32, crop: UInt8) -> WindowOutput:
        """See ``WindowEngine.run_window``."""
        timings: dict[str, float] = {}
        _, head = self._judge(lare, crop, timings)
        return WindowOutput(head["logits"], head["attention"], timings)

    def _judge(self, lare: Float32, crop: UInt8, timings: dict[str, float]) -> tuple[Outputs, Outputs]:
        clip = self._call("clip_backbone", {"crop": crop}, timings)  # embedding [B,D], layer3 [B,C,14,14]
        inputs = {"lare": lare, "embedding": clip["embedding"], "layer3": clip["layer3"]}
        return clip, self._call("egre", inputs, timings)

    def _call(self, name: ComponentName, inputs: Arrays, timings: dict[str, float]) -> Outputs:
        if not self._components:
            raise closed(self._info)
        begin = time.perf_counter()
        outputs = self._components[name](inputs)
        timings[name] = (time.perf_counter() - begin) * 1e3
        return outputs

    def close(self) -> None:
        """Release the components."""
        self._components.clear()
        self._close()


def check_inputs(variant: Variant, inputs: Arrays) -> None:
    """Raise EngineError unless the arrays are what a graph takes; some libraries would cast or read past the end."""
    for spec in variant.inputs:
        check_array(inputs[spec.name], spec, taker=variant.graph)


def check_array(array: NDArray[np.generic], spec: TensorSpec, *, taker: str) -> None:
    """Raise EngineError unless an array has the type and shape of a tensor that ``taker`` takes."""
    if (array.dtype, array.shape) != (np.dtype(spec.dtype), spec.shape):
        raise EngineError(
            f"{taker} takes {spec.name} as {spec.dtype} {list(spec.shape)}, not {array.dtype} {list(array.shape)}",
            remedy="report it",
        )


def closed(info: EngineInfo) -> EngineError:
    """Return the error of a call to an engine that was closed."""
    return EngineError(f"the engine {info.name} is closed", remedy="open it again")


def check_outputs(variant: Variant, outputs: Arrays) -> None:
    """Raise EngineError unless the arrays are what a graph declares, which is not always what it computes."""
    for spec in variant.outputs:
        shape = outputs[spec.name].shape
        if shape != spec.shape:
            raise EngineError(
                f"{variant.graph} gave {spec.name} as {list(shape)} instead of {list(spec.shape)}",
                remedy="build the bundle again",
            )
