"""Small labelled sets and a way to run the command in this process."""

import csv

import numpy as np
from PIL import Image

from tests.helpers.commands import call


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


def run_command(*arguments):
    """Run ``lare2-rt`` in this process; returns (exit code, standard output, standard error)."""
    run = call(*arguments)
    assert "Traceback" not in run.stderr
    return run.returncode, run.stdout, run.stderr
