"""Names for files about images: from hostile names to plain ones."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

_LONGEST = 60  # with the hash and the ending far below the 143 bytes that the strictest file systems allow


def panel_name(source: str) -> str:
    """Return the file name of a source's panel, such as ``photo-1f0c9a3b5d7e.png``.

    The same source always gets the same name and two sources get different ones: it ends in 48 bits of the sha256 of
    the whole path, in small hex digits, so that disks which ignore case keep them apart too. The rest is for people.
    """
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:12]
    stem = Path(source).stem
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:_LONGEST].strip("._-")
    return f"{plain or 'image'}-{digest}.png"
