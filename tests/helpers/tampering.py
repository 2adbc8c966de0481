"""What an attacker, or a bad disk, does to a bundle, and how opening it answers."""

import json

import pytest
from pydantic import ValidationError

from lare2_rt.bundle.manifest import MANIFEST, Manifest
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.errors import BundleError
from lare2_rt.host.integrity import sha256_of

GRAPH = "egre.b1.fp32.portable.onnx"
REMEDIES = ("again", "build one with", "check its access rights", "remove it", "install the lare2-rt")


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


def refused(folder, *words, **options):
    """Opening says why not in one printable sentence that ends in a remedy; returns it."""
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, **options)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 600
    assert any(remedy in sentence for remedy in REMEDIES), sentence
    for word in words:
        assert word in sentence
    return sentence
