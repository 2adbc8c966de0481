"""How each convolution of a graph is computed: by a rule that was measured once, under a budget of memory.

``python -m benchmarks.throughput --profile`` times every shape of SD 1.5 in every way; docs/cpu.md has the table. It is
a rule and not a measurement of every machine, because a bundle must give the same bits when it is compiled again.
"""

from __future__ import annotations

from collections.abc import Mapping

from .layers import Choice, Layer

# Smaller pictures have so few tiles that reading F(4×4)'s weights takes as long as multiplying with F(2×2)'s.
_SMALLEST_FOR_LARGE_TILES = 16
# From this side on what lies between the transforms passes through the caches in strips of so many bytes.
_STRIPS_FROM, _STRIP_BYTES = 128, 7_000_000


def choose(layers: Mapping[Layer, int], *, tiles: tuple[int, ...], budget: int, channels: int) -> dict[Layer, Choice]:
    """Return the choice of every layer, given with how often it occurs, that is not computed directly.

    The layers that save most multiplications for a byte come first, and take the larger tile where that is still within
    the budget.

    Args:
        tiles: sizes that may be chosen.
        budget: bytes that the transformed weights may take more than the stored ones.
        channels: layers with fewer, coming in or going out, are left alone.
    """
    steps = []
    for layer, count in layers.items():
        for choice in candidates(layer, tiles) if min(layer.inputs, layer.outputs) >= channels else ():
            saved = count * (_direct(layer) - _multiplications(layer, choice))
            cost = count * (choice.weight_bytes(layer) - layer.weight_bytes)
            steps.append((saved / cost, saved, cost, layer, choice))
    chosen: dict[Layer, Choice] = {}
    spent: dict[Layer, tuple[int, int]] = {}
    for _, saved, cost, layer, choice in sorted(steps, key=lambda step: (-step[0], step[3])):
        before, paid = spent.get(layer, (0, 0))
        if saved > before and sum(value for _, value in spent.values()) - paid + cost <= budget:
            chosen[layer], spent[layer] = choice, (saved, cost)
    return chosen


def candidates(layer: Layer, tiles: tuple[int, ...]) -> list[Choice]:
    """Return what is faster than a direct convolution for a layer, one choice for each size of tile."""
    side = min(layer.height, layer.width)
    return [arranged(layer, tile) for tile in tiles if side >= (tile if tile == 2 else _SMALLEST_FOR_LARGE_TILES)]


def arranged(layer: Layer, tile: int) -> Choice:
    """Return the fastest way to compute a layer with a size of tile."""
    return Choice(tile, strips_of(layer, tile) if min(layer.height, layer.width) >= _STRIPS_FROM else 1)


def strips_of(layer: Layer, tile: int) -> int:
    """Return into how many strips a layer falls such that each fits into caches."""
    between = 4 * (tile + 2) ** 2 * _tiles(layer, tile) * (layer.inputs + layer.outputs)
    return -(-between // _STRIP_BYTES)


def _tiles(layer: Layer, tile: int) -> int:
    return layer.batch * -(-layer.height // tile) * -(-layer.width // tile)


def _direct(layer: Layer) -> int:
    return 9 * layer.inputs * layer.outputs * layer.batch * layer.height * layer.width


def _multiplications(layer: Layer, choice: Choice) -> int:
    return (choice.tile + 2) ** 2 * layer.inputs * layer.outputs * _tiles(layer, choice.tile)
