"""Random numbers as a function of what they are for, so that neither workers, processes nor a resume can shift them."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

Purpose = str | int


def generator(*purpose: Purpose) -> np.random.Generator:
    """Return NumPy's Philox for a purpose such as (seed, "order", epoch)."""
    return np.random.Generator(np.random.Philox(key=_key(*purpose)))


def seed_torch(*purpose: Purpose) -> None:
    """Seed torch's generators of all devices for what comes next (initial weights; dropout of one step)."""
    torch.manual_seed(_key(*purpose) & (1 << 63) - 1)


def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of ``count`` images in an epoch."""
    return generator(seed, "order", epoch).permutation(count)


def _key(*purpose: Purpose) -> int:
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:16], "little")
