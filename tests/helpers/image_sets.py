"""Small labelled sets on disk: every picture is another colour, so every file has another content."""

import io
import os
from pathlib import Path

from PIL import Image

from tests.helpers.commands import call


def picture(number, *, size=(16, 16), form="PNG", **options):
    """Encoded bytes of the picture with this number."""
    stream = io.BytesIO()
    colour = (number % 256, number * 7 % 256, number * 31 % 256)
    Image.new("RGB", size, colour).save(stream, form, **options)
    return stream.getvalue()


def tree(root, names, *, start=0):
    """Write one picture per name; a name is relative to ``root`` and may be any that the system allows."""
    for number, name in enumerate(names, start):
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
        path.write_bytes(picture(number, form=form))
    return Path(root)


def snapshot(folder):
    """Content of every file below a folder, by its relative name."""
    return {os.path.relpath(p, folder): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def here(monkeypatch, folder):
    """Go to ``folder`` and return the function that runs the command in this process."""
    monkeypatch.chdir(folder)
    return call
