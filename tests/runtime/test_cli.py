"""The command as users run it: output formats, exit codes, sentences."""

import csv
import io
import json
import re
import statistics
import subprocess
import sys
import time

import pytest
from PIL import Image

from lare2_rt.bundle.manifest import Decision
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.bundle.rewrite import write_with_decision
from tests.conftest import ROOT

HEAVY = ("torch", "onnx", "onnxruntime", "pydantic", "rich", "typer", "numpy", "PIL")


@pytest.fixture
def mixed(tmp_path, rocket):
    """Good files around a missing one, one that is no image, and a truncated JPEG."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(rocket.read_bytes())
    (folder / "no-image.jpg").write_bytes(b"hello\n")
    (folder / "truncated.jpg").write_bytes(rocket.read_bytes()[:20_000])
    (folder / "z.jpg").write_bytes(rocket.read_bytes())
    return [folder / name for name in ("a.jpg", "missing.jpg", "no-image.jpg", "truncated.jpg", "z.jpg")]


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_bad_files_among_good_ones(lare2_rt, mixed, form):
    run = lare2_rt("infer", *mixed, "--format", form)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr + run.stdout
    sentences = [line for line in run.stderr.splitlines() if ".jpg:" in line]
    assert len(sentences) == 3
    for name, words in (("missing", "no such file"), ("no-image", "not an image"), ("truncated", "truncated")):
        assert any(f"{name}.jpg: {words}" in line for line in sentences), name
    if form == "json":
        records = json.loads(run.stdout)
    elif form == "jsonl":
        records = [json.loads(line) for line in run.stdout.splitlines()]
    elif form == "csv":
        records = list(csv.DictReader(io.StringIO(run.stdout)))
    else:
        assert len(re.findall(r" (real|unsure|generated) ", run.stdout)) == 2
        assert run.stdout.count("failed") == 3
        return
    assert [record["source"] for record in records] == [str(path) for path in mixed]
    assert [bool(record["error"]) for record in records] == [False, True, True, True, False]
    assert records[0]["probability"] == records[4]["probability"]


def test_all_good_is_zero(lare2_rt, photos):
    run = lare2_rt("infer", *photos, "--format", "jsonl")
    assert run.returncode == 0
    for line in run.stdout.splitlines():
        record = json.loads(line)
        assert record["schema"] == "lare2-rt/detection/1"
        assert record["verdict"] in ("real", "unsure", "generated")
        assert record["bundle"]["name"] == "mini"
        assert record["engine"]["name"] == "onnxruntime"
        assert f"note: {record['decision']['note']}" in run.stderr
    assert "export/build_engines.py" in run.stderr


def test_folders_and_globs(lare2_rt, rocket, tmp_path):
    nested = tmp_path / "album" / "2024"
    nested.mkdir(parents=True)
    for name in ("b.JPG", "a.jpg"):
        (nested / name).write_bytes(rocket.read_bytes())
    (nested / "notes.txt").write_text("no image")
    for argument in ("album", "album/**/*.[jJ]*"):
        run = lare2_rt("infer", argument, "--format", "jsonl")
        assert run.returncode == 0, run.stderr
        names = [json.loads(line)["source"].rsplit("/")[-1] for line in run.stdout.splitlines()]
        assert names == ["a.jpg", "b.JPG"]
    assert lare2_rt("infer", "album/*.png").returncode == 2
    (tmp_path / "empty").mkdir()
    run = lare2_rt("infer", "empty")
    assert run.returncode == 2
    assert "no images in empty" in run.stderr


@pytest.mark.parametrize(
    ("name", "form"), [("r.jsonl", "jsonl"), ("r.json", "json"), ("r.csv", "csv"), ("r.txt", "table")]
)
def test_out_takes_its_format_from_the_ending(lare2_rt, photos, tmp_path, name, form):
    run = lare2_rt("infer", photos[0], "--out", name)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    text = (tmp_path / name).read_text()
    if form == "json":
        assert len(json.loads(text)) == 1
    elif form == "jsonl":
        assert json.loads(text)["source"] == str(photos[0])
    else:
        assert str(photos[0]) in text
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_out_is_never_overwritten_without_force(lare2_rt, photos, tmp_path):
    (tmp_path / "r.csv").write_text("precious")
    run = lare2_rt("infer", photos[0], "--out", "r.csv")
    assert run.returncode == 2
    assert "exists already" in run.stderr
    assert (tmp_path / "r.csv").read_text() == "precious"
    assert lare2_rt("infer", photos[0], "--out", "r.csv", "--force").returncode == 0
    assert (tmp_path / "r.csv").read_text() != "precious"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["infer", "x.jpg", "--bundle", "nowhere"], "nowhere is not a bundle folder"),
        (["infer", "x.jpg", "--engine", "cuda"], "there is no engine 'cuda'"),
        (["infer", "x.jpg", "--batch", "3"], "batch 3"),
        (["infer", "x.jpg", "--threshold", "7"], "between 0 and 1"),
        (["infer", "x.jpg", "--out", "x.weird"], "cannot tell the format"),
        (["infer", "x.jpg", "--out", "no/such/folder.json"], "does not exist"),
        (["infer", "x.jpg", "--format", "yaml"], "yaml"),
        (["infer"], "Missing argument"),
        (["inspect", "nowhere"], "nowhere is not a bundle folder"),
    ],
)
def test_usage_errors_exit_with_2(lare2_rt, arguments, words):
    run = lare2_rt(*arguments)
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_colour_is_for_terminals_alone(lare2_rt, photos, tmp_path, monkeypatch):
    """Whatever the environment forces on terminals, files and pipes hold plain text."""
    for variable, value in (("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1"), ("CLICOLOR_FORCE", "1"), ("COLUMNS", "20")):
        monkeypatch.setenv(variable, value)
    run = lare2_rt("infer", photos[0], "missing.jpg", "--out", "r.txt")
    assert run.returncode == 1
    text = (tmp_path / "r.txt").read_text()
    assert str(photos[0]) in text
    assert "\x1b" not in text + run.stderr
    for arguments in (("infer", photos[0]), ("inspect",)):
        run = lare2_rt(*arguments)
        assert run.returncode == 0
        assert "\x1b" not in run.stdout + run.stderr


def test_threshold_is_echoed(lare2_rt, photos):
    run = lare2_rt("infer", photos[0], "--threshold", "0.3", "--format", "jsonl")
    decision = json.loads(run.stdout)["decision"]
    assert decision["explicit"]
    assert decision["generated_from"] == decision["real_below"] == 0.3


def test_bundle_order(lare2_rt, photos, tmp_path, bundle_copy, monkeypatch):
    def origin():
        run = lare2_rt("infer", photos[0], "--format", "jsonl")
        return json.loads(run.stdout)["bundle"]["path"]

    assert origin() == "embedded"
    bundle_copy.rename(tmp_path / "engines")
    assert origin() == str(tmp_path / "engines")
    (tmp_path / "engines").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("LARE2_BUNDLE", str(tmp_path / "elsewhere"))
    assert origin() == str(tmp_path / "elsewhere")


def test_a_demonstration_is_marked_wherever_a_verdict_stands(lare2_rt, embedded, rocket, tmp_path):
    """Whatever its thresholds say: here everything is called generated."""
    decision = Decision(
        calibration="calibrated", real_below=0.0, generated_from=0.0, data="nothing", demonstration=True
    )
    write_with_decision(open_bundle(embedded), tmp_path / "demo", decision)
    words = "this model is a demonstration"
    run = lare2_rt("infer", rocket, "--bundle", tmp_path / "demo", "--format", "csv", "--report", tmp_path / "r.html")
    assert run.returncode == 0, run.stderr
    (row,) = csv.DictReader(io.StringIO(run.stdout))
    assert row["verdict"] == "generated"
    assert row["note"].startswith(words)
    assert f"note: {words}" in run.stderr
    page = (tmp_path / "r.html").read_text()
    assert words in page.lower()
    assert "Every verdict is" not in page
    assert "measured by calibration" in page
    run = lare2_rt("infer", rocket, "--bundle", tmp_path / "demo", "--format", "jsonl")
    assert json.loads(run.stdout)["decision"]["note"].startswith(words)
    assert "a demonstration: calibrated" in lare2_rt("inspect", tmp_path / "demo").stdout
    assert words in lare2_rt("doctor", "--bundle", tmp_path / "demo", "--json").stdout
    # A bundle that is none has neither the field nor another id for it.
    assert (
        b"demonstration" not in (embedded / "manifest.json").read_bytes()
        or open_bundle(embedded).manifest.decision.demonstration
    )


def test_inspect(lare2_rt, embedded):
    run = lare2_rt("inspect", embedded)
    assert run.returncode == 0
    decision = open_bundle(embedded).manifest.decision.calibration
    for word in ("mini", decision, "unet_step", "timestep 200", "reflect101", "licence", "parity"):
        assert word in run.stdout
    manifest = json.loads(lare2_rt("inspect", embedded, "--format", "json").stdout)
    assert manifest == json.loads((embedded / "manifest.json").read_text())


def test_image_orientation_is_applied_once(lare2_rt, rocket, tmp_path):
    """A turned JPEG and the same pixels without the tag score alike."""
    with Image.open(rocket) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # needs 90 degrees clockwise to be upright
        turned.save(tmp_path / "turned.png", exif=exif)
        image.save(tmp_path / "upright.png")
    run = lare2_rt("infer", "turned.png", "upright.png", "--format", "jsonl")
    first, second = (json.loads(line) for line in run.stdout.splitlines())
    assert first["logits"] == second["logits"]


def test_version(lare2_rt):
    import lare2_rt as package

    assert lare2_rt("--version").stdout == f"lare2-rt {package.__version__}\n"


def test_import_is_light():
    code = f"import sys, lare2_rt; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_help_is_quick_and_needs_no_torch(tmp_path):
    """Median of five under 0.5 s or four times a bare interpreter with json and argparse, whichever is larger."""
    blocker = "import sys; sys.modules['torch'] = sys.modules['onnxruntime'] = None; from lare2_rt.cli import main; "
    code = blocker + "sys.argv = ['lare2-rt', '--help']; main()"

    def median(source):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, cwd=tmp_path)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    assert median(code) < max(0.5, 4 * median("import json, argparse"))


def build_engines(*arguments, prologue="", module=False, cwd):
    """Run ``build_engines.py``, or the module, after a few lines of Python."""
    start = (
        "runpy.run_module('lare2_export', run_name='__main__', alter_sys=True)"
        if module
        else f"runpy.run_path({str(ROOT / 'export/build_engines.py')!r}, run_name='__main__')"
    )
    code = f"import runpy, sys\nsys.argv[1:] = {[str(a) for a in arguments]!r}\n{prologue}\n{start}"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("package", "module"), [("diffusers", False), ("torch", True)])
def test_build_without_the_export_extra(tmp_path, package, module):
    run = build_engines("--dry-run", prologue=f"sys.modules[{package!r}] = None", module=module, cwd=tmp_path)
    extra = "'lare2-rt[cpu,export]'" if module else "-c constraints.txt -e '.[cpu,export]'"
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines()[-1] == f"build_engines: {package} is not installed: pip install {extra}"
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_build_as_a_module_has_the_same_options(tmp_path):
    texts = [build_engines("--help", module=module, cwd=tmp_path).stdout for module in (False, True)]
    script, module = ([line for line in text.splitlines() if "Usage:" not in line] for text in texts)
    assert len(script) > 50
    assert script == module


@pytest.mark.parametrize(("number", "word", "code"), [("SIGINT", "interrupted", 130), ("SIGTERM", "terminated", 143)])
def test_build_interrupted_before_it_begins(tmp_path, number, word, code):
    """While the libraries load, typer would say 'Aborted' and exit with 1."""
    strike = (
        "import signal\nimport lare2_export.build.isolate as isolate\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"isolate.start_server = lambda: signal.raise_signal(signal.{number})"
    )
    run = build_engines(prologue=strike, cwd=tmp_path)
    assert run.returncode == code
    assert run.stderr.splitlines()[1:] == [
        f"build_engines: {word}; finished components are kept and reused by the next run"
    ]
    assert list(tmp_path.iterdir()) == []
