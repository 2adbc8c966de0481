"""Which block of the UNet a layer belongs to, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_BLOCK = re.compile(
    r"(?:^|\.)((?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+"
    r"|conv_in|conv_norm_out|conv_out)(?:[./]|$)"
)
_ORDER = ("conv_in", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")
# onnxruntime's own nodes around a convolution: what comes in is reordered for the next, what goes out for the last.
_FOR_NEXT = "ReorderInput"
OTHER = "other"


def block_of(layer: str) -> str | None:
    """Return the block of a module path or node name: ``up_blocks.1.attentions.2``; None outside of any."""
    found = _BLOCK.search(layer)
    return found.group(1) if found else None


def in_order(blocks: Iterable[str]) -> list[str]:
    """Sort blocks as the data passes them; what is no block comes last."""

    def place(block: str) -> tuple[int, list[int], str]:
        first = block.split(".")[0]
        rank = _ORDER.index(first) if first in _ORDER else len(_ORDER)
        stage, *_ = (*(int(number) for number in re.findall(r"\d+", block)), 0)
        last = int(block.rsplit(".", 1)[-1]) if "." in block else 0
        # Within a stage the ResNet block of a number runs before the transformer block of that number.
        kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
        kind = next((index for index, name in enumerate(kinds) if name in block), 0)
        sampler = kind >= 2
        return rank, [stage, int(sampler), last, kind], block

    return sorted(blocks, key=place)


def blocks_of_nodes(nodes: Sequence[Mapping[str, Any]], layers: Mapping[str, str]) -> list[str]:
    """Return the block of every executed node, in order of execution.

    Args:
        nodes: ``name`` and ``op`` of each, as onnxruntime's profiler gives them.
        layers: graph value -> name of the node that computes it. onnxruntime names the convolutions that it moves into
            its own layout after their output.

    A node that onnxruntime made up belongs to the named node before it, a ``ReorderInput`` to the one after it.
    """
    found = [_block_of_node(node["name"], layers) for node in nodes]
    resolved: list[str] = []
    for index, block in enumerate(found):
        if block is None and nodes[index]["op"] == _FOR_NEXT:
            block = next((later for later in found[index + 1 :] if later is not None), None)
        if block is None:
            block = resolved[-1] if resolved else OTHER
        resolved.append(block)
    return resolved


def _block_of_node(name: str, layers: Mapping[str, str]) -> str | None:
    """Return the block of a named node, ``other`` for a named node outside of any, None for a made-up name."""
    layer = layers.get(name.removesuffix("_nchwc"), name)
    if "/" not in layer:
        return None
    return block_of(layer) or OTHER
