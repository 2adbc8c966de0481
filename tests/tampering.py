"""What an attacker, or a bad disk, does to a bundle."""

import json

from pydantic import ValidationError

from lare2_rt.integrity import sha256_of
from lare2_rt.manifest import MANIFEST, Manifest


def read_manifest(folder):
    return json.loads((folder / MANIFEST).read_bytes())


def reseal(folder, raw=None):
    """Write the manifest with the sizes and hashes that the files now have, and with ids to match where it is valid.

    Nothing stops whoever edits a bundle from doing the same.
    """
    raw = read_manifest(folder) if raw is None else raw
    for name, entry in raw["files"].items():
        if (folder / name).is_file():
            entry.update(size=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
    try:
        manifest = Manifest.model_validate_json(json.dumps(raw))
    except ValidationError:
        pass
    else:
        raw.update(id=manifest.compute_id(), lare_id=manifest.compute_lare_id())
    (folder / MANIFEST).write_text(json.dumps(raw))


def flip(path, position=None):
    """Change one byte in the middle of a file in place."""
    with path.open("r+b") as handle:
        handle.seek(path.stat().st_size // 2 if position is None else position)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 0x55]))
