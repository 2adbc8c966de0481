"""Noise is data: drawn once when a bundle is built, stored in it, and the same for every image afterwards.

NumPy promises the bit stream of Philox but not the values of ``standard_normal`` across versions, so a runtime never
draws noise itself: it reads ``noise.npy``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Noise:
    """The random numbers of one LaRE extraction.

    Attributes:
        posterior: float32 [1,C,h,w], the draw that samples the VAE posterior.
        ensemble: float32 [E,C,h,w], the draws that are added to the latent at the timestep.
    """

    posterior: Float32
    ensemble: Float32

    def pack(self) -> Float32:
        """Return float32 [1+E,C,h,w]: row 0 is the posterior draw (the layout of ``noise.npy``)."""
        return np.concatenate([self.posterior, self.ensemble])

    @classmethod
    def unpack(cls, packed: Float32) -> Noise:
        """Split an array of ``pack``'s layout; raises ValueError when it has no ensemble row."""
        if packed.ndim != 4 or len(packed) < 2:
            raise ValueError(f"noise must have shape [1+E,C,h,w] with E >= 1, not {list(packed.shape)}")
        return cls(posterior=packed[:1], ensemble=packed[1:])


def draw_noise(seed: int, ensemble: int, latent_shape: tuple[int, int, int]) -> Noise:
    """Draw the noise of a bundle from Philox(seed); float32 standard normal, ``latent_shape`` = (C,h,w)."""
    generator = np.random.Generator(np.random.Philox(seed))
    return Noise.unpack(generator.standard_normal((1 + ensemble, *latent_shape)).astype(np.float32))
