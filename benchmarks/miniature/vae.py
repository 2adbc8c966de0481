"""The miniature's autoencoder: diffusers' encoder, started as a principal-component transform, and a small decoder.

Training an ``AutoencoderKL`` from nothing takes days. This one is right before the first step: its convolutions are set
so that the latent is the four principal components of every 4×4 patch of the picture, and what is trained are residuals
on top. The decoder is not diffusers' own, which cannot place pixels within a patch; LaRE never decodes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from lare2_ref.mini import VAE

Say = Callable[[str], None]
PATCH, COLOURS, LATENT = 4, 3, 4
_PIXELS = COLOURS * PATCH * PATCH
# GroupNorm would take every picture's own contrast away; constant channels of this size fix its scale.
_ANCHOR = 30.0
_FIRST_LOG_VARIANCE = -7.0


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


class Decoder(nn.Module):
    """Latent [B,4,h,w] -> picture [B,3,4h,4w] in about [-1,1]: the components' inverse and a residual."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.linear = nn.Conv2d(LATENT, _PIXELS, 1)
        self.first = nn.Conv2d(LATENT, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(3))
        self.last = nn.Conv2d(width, _PIXELS, 3, padding=1)
        self.smooth = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
        for conv in (self.last, self.smooth[2]):
            assert isinstance(conv, nn.Conv2d)
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(_bias(conv))

    def forward(self, latent: Tensor) -> Tensor:
        """See the class."""
        hidden = self.first(latent)
        for block in self.blocks:
            hidden = block(hidden)
        picture = F.pixel_shuffle(self.last(F.silu(hidden)) + self.linear(latent), PATCH)
        out: Tensor = picture + self.smooth(picture)
        return out


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(_bias(self.second))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] in and out."""
        out: Tensor = x + self.second(F.silu(self.first(F.silu(x))))
        return out


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


class Components:
    """Principal components of 4×4 patches: ``down`` [4,48] gives unit variance, ``up`` [48,4] inverts it."""

    def __init__(self, pictures: Tensor) -> None:
        patches = F.pixel_unshuffle(pictures, PATCH).permute(0, 2, 3, 1).reshape(-1, _PIXELS).double()
        self.mean = patches.mean(0)
        _, singular, rows = torch.linalg.svd(patches - self.mean, full_matrices=False)
        deviation = singular[:LATENT] / math.sqrt(len(patches))
        self.down = rows[:LATENT] / deviation[:, None]
        self.up = rows[:LATENT].T * deviation
        self.offset = -(self.down @ self.mean)


@torch.no_grad()
def new_autoencoder(components: Components) -> AutoencoderKL:
    """Return an ``AutoencoderKL`` in the geometry of ``mini`` whose latent is the components, exactly.

    The first stage is the mean of 2×2 pixels and stays so: ``encode_half`` enters behind it.
    """
    vae = AutoencoderKL(**{**VAE, "scaling_factor": 1.0})
    encoder = vae.encoder
    branches = [module.conv2 for module in encoder.modules() if hasattr(module, "conv2")]
    for last in (*branches, encoder.mid_block.attentions[0].to_out[0]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    _set(encoder.conv_in, {(c, c, 1, 1): 1.0 for c in range(COLOURS)})
    halve = encoder.down_blocks[0].downsamplers[0].conv
    taps = [(dy, dx) for dy in (0, 1) for dx in (0, 1)]
    _set(halve, {(c, c, dy, dx): 0.25 for c in range(halve.in_channels) for dy, dx in taps})
    copy_in = encoder.down_blocks[1].resnets[0].conv_shortcut
    _set(copy_in, {(c, c, 0, 0): 1.0 for c in range(COLOURS)}, rows=range(COLOURS))
    # Pixel (dy,dx) of a 2×2 cell and colour c goes to channel 4c + 2dy + dx.
    gather = {(4 * c + 2 * dy + dx, c, dy, dx): 1.0 for c in range(COLOURS) for dy, dx in taps}
    _set(encoder.down_blocks[1].downsamplers[0].conv, gather, rows=range(4 * COLOURS))
    project = {}
    for k in range(LATENT):
        for c in range(COLOURS):
            for y in range(PATCH):
                for x in range(PATCH):
                    value = float(components.down[k, c * PATCH * PATCH + y * PATCH + x])
                    channel = 4 * c + 2 * (y % 2) + x % 2
                    project[k, channel, y // 2, x // 2] = value
                    project[LATENT + k, channel, y // 2, x // 2] = -value
    down = encoder.down_blocks[2].downsamplers[0].conv
    _set(down, project, rows=range(2 * LATENT))
    down.bias[:LATENT] = components.offset.float()
    down.bias[LATENT : 2 * LATENT] = -components.offset.float()
    _through_the_norm(encoder)
    eye = {(i, i, 0, 0): 1.0 for i in range(2 * LATENT)}
    _set(vae.quant_conv, eye)
    return vae.eval()


@torch.no_grad()
def _through_the_norm(encoder: Any) -> None:  # noqa: ANN401 - diffusers is untyped
    """Carry the components p through GroupNorm and SiLU unchanged: silu(p) − silu(−p) = p.

    Each group gets one component, its negative, and two constants ±``_ANCHOR`` that alone make its variance.
    """
    norm = encoder.conv_norm_out
    group = norm.num_channels // norm.num_groups
    spread = {(group * k + sign, LATENT * sign + k, 0, 0): 1.0 for k in range(LATENT) for sign in (0, 1)}
    _set(encoder.down_blocks[3].resnets[0].conv_shortcut, spread)
    anchor = encoder.mid_block.resnets[1].conv2.bias
    for k in range(LATENT):
        anchor[group * k + 2], anchor[group * k + 3] = _ANCHOR, -_ANCHOR
    norm.weight.fill_(_ANCHOR * math.sqrt(2 / group))
    norm.bias.zero_()
    difference = {(k, group * k + sign, 1, 1): 1.0 - 2.0 * sign for k in range(LATENT) for sign in (0, 1)}
    _set(encoder.conv_out, difference, rows=range(LATENT))
    encoder.conv_out.weight[LATENT:] *= 0.1
    encoder.conv_out.bias[LATENT:] = _FIRST_LOG_VARIANCE


@torch.no_grad()
def _set(conv: nn.Conv2d, values: dict[tuple[int, int, int, int], float], *, rows: range | None = None) -> None:
    """Set single weights; the given output channels (all by default) are zero but for them."""
    rows = rows if rows is not None else range(conv.out_channels)
    conv.weight[rows.start : rows.stop] = 0
    _bias(conv)[rows.start : rows.stop] = 0
    for place, value in values.items():
        conv.weight[place] = value


def encode_half(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance [B,4,h/4,w/4] of pictures [B,3,h,w] in [-1,1] of half the runtime's size.

    The same as encoding the doubled picture, without the stage that halves it again.
    """
    encoder = vae.encoder
    hidden = F.pad(pictures, (0, 0, 0, 0, 0, encoder.conv_in.out_channels - COLOURS))
    for block in encoder.down_blocks[1:]:
        hidden = block(hidden)
    hidden = encoder.mid_block(hidden)
    moments = vae.quant_conv(encoder.conv_out(F.silu(encoder.conv_norm_out(hidden))))
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


@torch.enable_grad()
def train(
    pictures: NDArray[np.uint8], validation: NDArray[np.uint8], *, steps: int, batch: int, seed: int, say: Say
) -> tuple[AutoencoderKL, Decoder, dict[str, float]]:
    """Train on uint8 pictures [N,64,64,3]; returns both networks, latents of unit variance, and facts.

    The loss is L1 of pixels, gradients and coarse pixels with a little KL; AdamW, cosine, averaged weights.
    """
    torch.manual_seed(seed)
    order = np.random.Generator(np.random.Philox(seed))
    components = Components(as_tensor(pictures[order.permutation(len(pictures))[:1500]]))
    vae, decoder = new_autoencoder(components), Decoder()
    with torch.no_grad():
        decoder.linear.weight.copy_(components.up.float()[:, :, None, None])
        _bias(decoder.linear).copy_(components.mean.float())
    held = as_tensor(validation)
    facts = {"psnr_components": psnr(vae, decoder, held)}
    trained = nn.ModuleList([vae.encoder.down_blocks[1:], vae.encoder.mid_block, vae.encoder.conv_norm_out])
    trained.extend([vae.encoder.conv_out, decoder])
    live = nn.ModuleList([vae, decoder])
    averaged_vae, averaged_decoder = copy.deepcopy((vae, decoder))
    averaged = nn.ModuleList([averaged_vae, averaged_decoder])
    optimiser = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    for step in range(steps):
        cosine(optimiser, 1e-3, step, steps, warm=50)
        x = as_tensor(pictures[order.integers(0, len(pictures), batch)])
        mean, log_variance = encode_half(vae, x)
        y = decoder(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = _distance(y, x) + 1e-3 * kl
        descend(optimiser, trained, loss, bound=1.0)
        average(averaged, live, min(0.995, (1 + step) / (10 + step)))
        if step % 50 == 0:
            say(f"autoencoder: step {step} of {steps}, loss {loss.item():.4f}")
    vae, decoder = averaged_vae, averaged_decoder
    facts["psnr"] = psnr(vae, decoder, held)
    facts["posterior_deviation"] = _normalise(vae, decoder, pictures)
    return vae.eval(), decoder.eval(), facts


@torch.no_grad()
def _normalise(vae: AutoencoderKL, decoder: Decoder, pictures: NDArray[np.uint8]) -> float:
    """Bake zero mean and unit variance of every latent channel into ``quant_conv`` and the decoder; returns the
    posterior's mean deviation in those units.
    """
    moments = [encode_half(vae, as_tensor(pictures[k : k + 128])) for k in range(0, len(pictures), 512)]
    mean = torch.cat([m for m, _ in moments])
    shift, deviation = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    vae.quant_conv.weight[:LATENT] /= deviation.view(-1, 1, 1, 1)
    vae.quant_conv.bias[:LATENT] = (vae.quant_conv.bias[:LATENT] - shift) / deviation
    vae.quant_conv.bias[LATENT:] -= 2 * deviation.log()
    for conv in (decoder.linear, decoder.first):
        # The padding of ``first`` now stands for the latent's mean instead of zero: the rim changes a little.
        _bias(conv).add_((conv.weight * shift.view(1, -1, 1, 1)).sum((1, 2, 3)))
        conv.weight *= deviation.view(1, -1, 1, 1)
    spread = torch.cat([torch.exp(0.5 * v) for _, v in moments])
    return float((spread / deviation.view(1, -1, 1, 1)).mean())


def _distance(y: Tensor, x: Tensor) -> Tensor:
    rows = (y[..., 1:, :] - y[..., :-1, :]) - (x[..., 1:, :] - x[..., :-1, :])
    columns = (y[..., 1:] - y[..., :-1]) - (x[..., 1:] - x[..., :-1])
    coarse = F.avg_pool2d(y, 4) - F.avg_pool2d(x, 4)
    edges = rows.abs().mean() + columns.abs().mean()
    return (y - x).abs().mean() + 0.5 * edges + 0.5 * coarse.abs().mean()


@torch.no_grad()
def psnr(vae: AutoencoderKL, decoder: Decoder, pictures: Tensor) -> float:
    """Mean PSNR in dB of pictures [B,3,h,w] in [-1,1] after encoding (posterior mean) and decoding."""
    back = decoder(encode_half(vae, pictures)[0]).clamp(-1, 1)
    return float((10 * torch.log10(4 / (back - pictures).square().mean((1, 2, 3)))).mean())
