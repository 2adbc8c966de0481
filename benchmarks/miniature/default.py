"""The embedded bundle out of the miniature's model folder: built, calibrated and judged with the tools that users have.

    python -m benchmarks.miniature.default --model FOLDER --out FOLDER [--work FOLDER] [--also LIST]

``build_engines.py`` makes the bundle, ``lare2-rt calibrate`` fits it on the validation photographs, ``lare2-rt
evaluate`` judges it before and after on the test photographs, which nothing was fitted on, and on the test split of
``--also``. Real are photographs and their round trips through the autoencoder; every picture is there at 128 and at 256
pixels. ``benchmarks/results/miniature-default.json`` has the figures and what they decide.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common.command import RESULTS, ROOT, run_command, say
from benchmarks.miniature.ablation import REAL
from benchmarks.miniature.protocol import FULL, GENERATORS, QUICK, SEEN
from benchmarks.miniature.stages import Work
from lare2_rt.errors import UsageError
from lare2_rt.host.atomic import write_bytes

RESULT = RESULTS / "miniature-default.json"
SCHEMA = "lare2-rt/miniature-default/1"
# The bundle ships as trained if the lower end of the interval of its AUC, photographs and round trips against all
# generators, is above this; else it ships as it is when it was built, and says ``unsure`` to every picture.
BOUND = 0.6
RATE = 0.05  # of false positives that calibration is asked for; a lower one needs more photographs than there are
_SPLITS = {"validation": "val", "test": "test"}
# Lists of test pictures by name. ``as calibrated`` has the kinds of pictures that calibration has, in the same shares;
# ``all`` has every generator: the shares of both classes are others there, so its ECE says nothing.
LISTS = {
    "as calibrated": ("real", REAL, SEEN),
    "all": ("real", REAL, *GENERATORS),
    "photographs": ("real", *GENERATORS),
    "round trips": (REAL, *GENERATORS),
}
_COLUMNS = ("path", "label", "generator", "split", "source")
_KEPT = (
    "auc",
    "average_precision",
    "accuracy_at_half",
    "real_accuracy_at_half",
    "ece",
    "false_positive_rate",
    "miss_rate",
    "unsure_share",
    "decided_accuracy",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit code 0 done, 2 cannot start, else that of the command that failed."""
    given = parser().parse_args(arguments)
    return run_command("miniature_default", lambda: _make(given))


def _make(given: argparse.Namespace) -> int:
    if given.out.exists():
        raise UsageError(f"{given.out} exists already", remedy="remove it or name another folder")
    work = Work(given.work, QUICK if given.quick else FULL, say)
    folder = work.path("default")
    folder.mkdir(exist_ok=True)
    try:
        lists = write_pictures(work, folder / "pictures")
        result = judge(lists, given.model, given.out, folder, also=given.also)
    except subprocess.CalledProcessError as error:
        print(f"miniature_default: stopped by {error.cmd}, exit code {error.returncode}", file=sys.stderr)
        return error.returncode
    content = {"schema": SCHEMA, "key": work.key, **result}
    target = folder / "result.json" if given.quick else RESULT
    write_bytes(target, (json.dumps(content, indent=1) + "\n").encode())
    say(f"wrote {target}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.miniature.default",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--model", type=Path, required=True, help="model folder, written by benchmarks.miniature")
    result.add_argument("--out", type=Path, required=True, help="folder of the bundle that is to ship")
    result.add_argument("--work", type=Path, default=ROOT / ".miniature", help="as of benchmarks.miniature")
    result.add_argument("--also", type=Path, help="another list of labelled images with a split test")
    result.add_argument("--quick", action="store_true", help="the pictures of benchmarks.miniature --quick")
    return result


def write_pictures(work: Work, folder: Path) -> dict[str, Path]:
    """Write the validation and test pictures as PNG, and ``LISTS`` of them for ``lare2-rt``."""
    rows = [row for split in _SPLITS for row in _pictures_of(work, split, folder)]
    lists = {}
    for kind, names in LISTS.items():
        stream = io.StringIO()
        writer = csv.DictWriter(stream, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if row["set"] in names)
        lists[kind] = folder / f"{kind.replace(' ', '-')}.csv"
        write_bytes(lists[kind], stream.getvalue().encode())
    return lists


def _pictures_of(work: Work, split: str, folder: Path) -> Iterator[dict[str, Any]]:
    sets = work.sets(split)
    for name, pictures in sets.pictures.items():
        label = int(name in GENERATORS)
        for number, pixels in enumerate(pictures):
            for size in (128, 256):
                path = folder / split / name / f"{number:04}-{size}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    stream = io.BytesIO()
                    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(stream, "PNG")
                    write_bytes(path, stream.getvalue())
                yield {
                    "path": path.relative_to(folder),
                    "label": label,
                    "set": name,
                    "generator": name if label else "",
                    "split": _SPLITS[split],
                    "source": f"group {sets.group[number]}",
                }


def judge(lists: dict[str, Path], model: Path, out: Path, folder: Path, *, also: Path | None) -> dict[str, Any]:
    """Build, calibrate and evaluate; the bundle that is to ship is ``out``. Raises CalledProcessError."""
    built, calibrated = folder / "built", folder / "calibrated"
    _run(ROOT / "export/build_engines.py", "--model", model, "--out", built)
    report = folder / "calibration.json"
    _run(
        *("-m", "lare2_rt", "calibrate", lists["as calibrated"], "--bundle", built, "--out", calibrated, "--force"),
        *("--fpr", RATE, "--report", report),
    )
    held_out = {}
    for kind, path in lists.items():
        # Logits are the same before and after, so what is no matter of thresholds is judged once.
        before = {"before": built} if kind == "as calibrated" else {}
        held_out[kind] = _evaluate(path, {**before, "after": calibrated}, folder / "held-out")
    low = held_out["all"]["after"]["metrics"]["auc"]["low"]
    chosen = calibrated if low > BOUND else built
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(chosen, beside)
    beside.rename(out)
    return {
        "calibration": json.loads(report.read_text()),
        "held_out": held_out,
        "elsewhere": None if also is None else _evaluate(also, {"after": out}, folder / "elsewhere", "--split", "test"),
        "decision": {"bound": BOUND, "auc_low": low, "ships_calibrated": low > BOUND},
    }


def _evaluate(data: Path, bundles: dict[str, Path], folder: Path, *options: object) -> dict[str, Any]:
    chosen = [word for bundle in bundles.values() for word in ("--bundle", bundle)]
    _run("-m", "lare2_rt", "evaluate", data, *chosen, "--out", folder, *options)
    found = json.loads((folder / "evaluation.json").read_text())
    out: dict[str, Any] = {"data": found["data"]}
    for name, one in zip(bundles, found["models"], strict=True):
        (plain,) = one["conditions"]
        metrics = plain["overall"]["metrics"]
        out[name] = {
            "bundle": one["bundle"],
            "decision": one["decision"],
            "metrics": {key: metrics[key] for key in _KEPT if key in metrics},
            "auc_by_generator": {g: part["metrics"]["auc"] for g, part in plain["generators"].items()},
        }
    return out


def _run(*words: object) -> None:
    code = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=False).returncode
    if code:
        name = f"lare2-rt {words[2]}" if words[0] == "-m" else Path(str(words[0])).name
        raise subprocess.CalledProcessError(code, name)


if __name__ == "__main__":
    sys.exit(main())
