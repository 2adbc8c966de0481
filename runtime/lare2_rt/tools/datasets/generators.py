"""Names of generators, as folders and files of the published sets spell them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

UNKNOWN = "unknown"
# The words that GenImage puts into file names and its archives into folder names, and the folder that each unpacks to.
_GENIMAGE = {
    "midjourney": "Midjourney",
    "sdv4": "stable_diffusion_v_1_4",
    "sdv5": "stable_diffusion_v_1_5",
    "adm": "ADM",
    "glide": "glide",
    "wukong": "wukong",
    "vqdm": "VQDM",
    "biggan": "BigGAN",
}
# Names of AIGCDetectBenchmark, ForenSynths, UnivFD and GenImage without case and punctuation.
_NAMES = """
    adm biggan crn cyclegan dalle2 deepfake gaugan glide guided imle ldm midjourney progan san sdxl seeingdark
    stablediffusionv14 stablediffusionv15 stargan stylegan stylegan2 stylegan3 vqdm whichfaceisreal wukong
"""
_KNOWN = frozenset(_NAMES.split())
# ForenSynths trains on ProGAN images in folders of these LSUN classes, without a folder of the generator's name.
_CLASSES = """
    airplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep
    sofa train tvmonitor
"""
PROGAN_CLASSES = frozenset(_CLASSES.split())


def is_known(name: str) -> bool:
    """Whether a folder name is that of a generator in the published sets, however it is written."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) in _KNOWN


def of_archive(folder: str) -> str | None:
    """Return the generator of a folder such as ``imagenet_ai_0419_sdv4``; None for any other folder."""
    words = folder.lower().split("_")
    return _word(words[1:]) if words[0] == "imagenet" else None


def is_archive(folder: str) -> bool:
    """Whether a folder is one of GenImage's archives, which tell the generator or hold several."""
    return re.fullmatch(r"imagenet(_[a-z0-9]+)+", folder.lower()) is not None


def of_file(name: str) -> str | None:
    """Return the generator that a GenImage file name tells, such as ``371_sdv5_00145.png``."""
    return _word(os.path.splitext(name)[0].lower().split("_"))


def guess(folders: Iterable[str], name: str) -> str:
    """Return the generator of a generated file from its folders, nearest first, and its name; else ``unknown``."""
    for folder in folders:
        if (archive := of_archive(folder)) is not None:
            return archive
        if is_known(folder):
            return folder
    return of_file(name) or UNKNOWN


def _word(words: Iterable[str]) -> str | None:
    return next((_GENIMAGE[word] for word in words if word in _GENIMAGE), None)
