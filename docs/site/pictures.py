#!/usr/bin/env python3
"""Draw the pictures of docs/evidence.md and README.md anew: two panels, and the report on a desktop and on a phone.

    python docs/site/pictures.py IMAGE... [--bundle BUNDLE]

The report shows all images, the panels the first one. All have to be openly licensed, and docs/evidence.md names each.
Needs the extra ``browser`` (tests/helpers/browser.py says how it is found). The JPEG comment of each picture is the
bundle's id.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lare2_rt import Detector, render_panel
from lare2_rt.host.atomic import write_bytes

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[2]))

from tests.helpers import browser

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs/images"
DESKTOP, PHONE = (1280, 1500), (400, 1700)
_TABLE = "(document.getElementById('images').scrollIntoView(), 1)"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--bundle", help="default: the one that infer would use")
    given = parser.parse_args()
    identity = draw_panels(given.images[0], given.bundle)
    with tempfile.TemporaryDirectory() as folder:
        draw_report(given.images, given.bundle, Path(folder), identity)


def draw_panels(image: Path, bundle: str | None) -> str:
    """Draw the panels with one window and with nine; returns the bundle's id."""
    identity = ""
    for crops, name in ((1, "panel"), (9, "panel-crops-9")):
        with Detector.load(bundle, keep_views=True, crops=crops) as detector:
            identity = detector.info.provenance.bundle_id
            save(render_panel(dataclasses.replace(detector.detect(image), source=image.name)), name, identity)
    return identity


def draw_report(images: Sequence[Path], bundle: str | None, folder: Path, identity: str) -> None:
    """Write a report on the images and photograph it."""
    for image in images:
        (folder / image.name).symlink_to(image.resolve())
    page = folder / "report.html"
    line = [sys.executable, "-m", "lare2_rt", "infer", *(image.name for image in images), "--report", os.fspath(page)]
    subprocess.run([*line, *(["--bundle", os.path.abspath(bundle)] if bundle else [])], cwd=folder, check=True)
    (desktop,) = shots(page, DESKTOP, [[]])
    save(desktop, "report-desktop", identity)
    top, table = shots(page, PHONE, [[], [_TABLE]])
    both = Image.new("RGB", (top.width + table.width, top.height))
    both.paste(top, (0, 0))
    both.paste(table, (top.width, 0))
    save(both, "report-phone", identity)


def shots(page: Path, size: tuple[int, int], groups: Sequence[Sequence[str]]) -> list[Image.Image]:
    """Return what a window of ``size`` (width, height) shows after each group of scripts."""
    files = [page.with_name(f"{size[0]}-{index}.png") for index in range(len(groups))]
    steps = [
        step for scripts, file in zip(groups, files, strict=True) for step in (*scripts, {"shot": os.fspath(file)})
    ]
    browser.browse(page, steps, width=size[0], height=size[1])
    return [Image.open(file).convert("RGB") for file in files]


def save(picture: Image.Image, name: str, identity: str) -> None:
    """Write one picture of the page."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82, optimize=True, comment=f"bundle {identity}")
    write_bytes(PICTURES / f"{name}.jpg", stream.getvalue())


if __name__ == "__main__":
    main()
