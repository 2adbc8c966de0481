"""Arrays of a bundle, first of all its noise: drawn once, by the build, and the same for every image afterwards.

NumPy promises the bit stream of Philox but not the values of ``standard_normal`` across versions, so a runtime never
draws noise itself: it reads ``noise.npy``.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import BundleError
from ..host.atomic import reason

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


def read_array(folder: Path, name: str, expected: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Read a float32 ``.npy`` file of a bundle, by its header alone; None in ``expected`` fits any size.

    ``np.load`` would also open archives, and allocate what a header asks for.

    Raises:
        BundleError: it cannot be read, is no such array, or holds NaN or infinity.
    """
    again = "get or build the bundle again"
    try:
        content = io.BytesIO((folder / name).read_bytes())
        version = npy.read_magic(content)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(content)
    except OSError as error:
        raise BundleError(
            f"{folder / name} cannot be read: {reason(error)}", remedy="check its access rights"
        ) from error
    except Exception as error:  # the header is a Python literal, whose parser can fail in many ways
        raise BundleError(f"{folder}: {name} is not a plain NumPy array", remedy=again) from error
    body = content.read()
    fits = len(shape) == len(expected) and all(w in (None, g) for w, g in zip(expected, shape, strict=True))
    if dtype != np.float32 or not fits or fortran_order or len(body) != math.prod(shape) * dtype.itemsize or not body:
        wanted = ", ".join("n" if size is None else str(size) for size in expected)
        raise BundleError(f"{folder}: {name} is not a float32 array of shape [{wanted}]", remedy=again)
    packed = np.frombuffer(body, np.float32).reshape(shape).copy()
    if not np.isfinite(packed).all():
        raise BundleError(f"{folder}: {name} holds NaN or infinity", remedy=again)
    return packed
