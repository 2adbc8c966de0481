"""What the miniature's three trainings share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Say = Callable[[str], None]


def as_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [N,h,w,3] -> float32 [N,3,h,w] in [-1,1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def as_pictures(tensor: Tensor) -> NDArray[np.uint8]:
    """Float [N,3,h,w] in about [-1,1] -> uint8 [N,h,w,3]."""
    rounded = ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte()
    array: NDArray[np.uint8] = rounded.permute(0, 2, 3, 1).contiguous().numpy()
    return array


def cosine(optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int, *, warm: int) -> None:
    """Set the learning rate: a linear start, then half a cosine down to 3 %."""
    part = 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.03
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / warm) * part


def descend(optimiser: torch.optim.Optimizer, module: nn.Module, loss: Tensor, *, bound: float) -> None:
    """Take one step down the gradient, whose norm is cut at ``bound``."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), bound)
    optimiser.step()


@torch.no_grad()
def average(averaged: nn.Module, live: nn.Module, keep: float) -> None:
    """Move the running average of all parameters towards the live ones."""
    torch._foreach_lerp_(list(averaged.parameters()), list(live.parameters()), 1 - keep)
