"""What a frozen CLIP says of each image, computed once: on a CPU that is most of the work of an epoch."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lare2_rt.errors import OutputError
from lare2_rt.host.atomic import reason, write_bytes
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess
from lare2_rt.tools.evaluation.items import Item

from ..clip_backbone import ClipBackbone, ClipFeatures
from .data import read_checked

_SHARD = 64  # 51 MB of RN50's layer3
_KINDS = ("embedding", "layer3")
_RESERVE = 1 << 30


class ClipCache:
    """Features of the centre window of given images, in shards that a killed run leaves whole."""

    def __init__(self, folder: Path, contents: Sequence[str]) -> None:
        """Use ``open_clip_cache``."""
        self._folder = folder
        self._place = {sha256: divmod(number, _SHARD) for number, sha256 in enumerate(contents)}
        self._open: dict[tuple[str, int], NDArray[np.float32]] = {}

    def sample(self, sha256: str) -> dict[str, Tensor]:
        """Return ``embedding`` [D] and ``layer3`` [C,g,g] of one image."""
        shard, row = self._place[sha256]
        return {kind: torch.from_numpy(np.array(self._shard(kind, shard)[row])) for kind in _KINDS}

    def _shard(self, kind: str, number: int) -> NDArray[np.float32]:
        if (kind, number) not in self._open:
            self._open[kind, number] = np.load(self._folder / _name(kind, number), mmap_mode="r", allow_pickle=False)
        return self._open[kind, number]


@torch.no_grad()
def open_clip_cache(
    folder: Path,
    items: Sequence[Item],
    clip: ClipBackbone,
    *,
    clip_sha256: str,
    policy: Preprocessing,
    crop_size: int,
    build: bool = True,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> ClipCache:
    """Return the cache in ``folder``, after computing what is missing in it.

    Args:
        folder: removed and begun anew when it is of other images, weights or policies.
        items: the images, in the order of the shards.
        clip: the frozen backbone, on its device; clip_sha256: its identity.
        policy, crop_size: how windows are cut.
        build: False leaves the computing to another process, which must have finished.
        step: called with the images done and their number.

    Raises:
        ImageError: an image cannot be read. OutputError: the disk is full.
    """
    contents = [item.sha256 for item in items]
    facts = [clip_sha256, repr(policy), crop_size, torch.__version__, _SHARD, *contents]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    cache = ClipCache(folder, contents)
    if build:
        _begin(folder, key)
        device = clip.mean.device
        for number in range(-(-len(items) // _SHARD)):
            part = items[number * _SHARD : (number + 1) * _SHARD]
            if not all((folder / _name(kind, number)).is_file() for kind in _KINDS):
                windows = [
                    preprocess(read_checked(item), policy, image_size=8, crop_size=crop_size).crop for item in part
                ]
                _write(
                    folder, number, _features(clip, np.stack(windows), device), remaining=len(items) - number * _SHARD
                )
            step(min((number + 1) * _SHARD, len(items)), len(items))
    return cache


def _features(clip: ClipBackbone, windows: NDArray[np.uint8], device: torch.device) -> ClipFeatures:
    parts = [clip(torch.from_numpy(windows[i : i + 16]).to(device)) for i in range(0, len(windows), 16)]
    return ClipFeatures(*(torch.cat([part[axis] for part in parts]).cpu() for axis in range(2)))


def _begin(folder: Path, key: str) -> None:
    marker = folder / "cache.json"
    try:
        if not marker.is_file() or json.loads(marker.read_bytes()) != {"key": key}:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_bytes(marker, json.dumps({"key": key}).encode())
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        _begin(folder, key)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {reason(error)}", remedy="free some space or choose another --out"
        ) from error


def _write(folder: Path, number: int, features: ClipFeatures, *, remaining: int) -> None:
    arrays = {"embedding": features.embedding.float().numpy(), "layer3": features.layer3.float().numpy()}
    needed = sum(array.nbytes for array in arrays.values()) / len(features.embedding) * remaining
    free = shutil.disk_usage(folder).free
    if needed + _RESERVE > free:
        raise OutputError(
            f"keeping CLIP's features needs {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free",
            remedy="free some space, or pass --no-clip-cache to compute them in every epoch",
        )
    for kind, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_bytes(folder / _name(kind, number), buffer.getvalue())


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.npy"
