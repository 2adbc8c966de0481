"""Small labelled sets and a way to run the command in this process."""

import csv
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from lare2_rt.cli import main


def write_set(folder, *, real=12, generated=12, overlap=0.5, size=24, splits=("test",), generators=("sd", "glide")):
    """Grey pictures, generated ones brighter on average; returns a CSV that lists them.

    Two neighbours of a class share a source. Content is unique: a counter sits in one corner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    rows = []
    for label, count in ((0, real), (1, generated)):
        for number in range(count):
            centre = 90 + 70 * label * (1 - overlap)
            level = int(np.clip(draw.normal(centre, 35), 0, 250))
            picture = np.full((size, size, 3), level, np.uint8)
            picture[0, 0] = (label, number // 256, number % 256)
            name = f"{label}-{number:04}.png"
            Image.fromarray(picture).save(folder / name)
            generator = generators[number % len(generators)] if label else ""
            rows.append([name, label, generator, splits[number // 2 % len(splits)], f"{label}-{number // 2}"])
    with (folder / "set.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "generator", "split", "source"])
        writer.writerows(rows)
    return folder / "set.csv"


def run_command(monkeypatch, capsys, *arguments):
    """Run ``lare2-rt`` in this process; returns (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["lare2-rt", *map(os.fspath, arguments)])
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        signal.signal(signal.SIGINT, before)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return left.value.code, captured.out, captured.err
