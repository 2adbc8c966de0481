"""The command as users run it: output formats, exit codes, sentences."""

import csv
import io
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lare2_rt import __version__
from lare2_rt.bundle.manifest import Decision
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.bundle.rewrite import write_with_decision
from lare2_rt.tools.doctor.storage import check_bundle
from tests.conftest import ROOT
from tests.helpers.commands import sentences

HEAVY = ("torch", "onnx", "onnxruntime", "pydantic", "rich", "pyarrow", "numpy", "PIL")
MIXED = ("a.jpg", "missing.jpg", "no-image.jpg", "truncated.jpg", "z.jpg")


@pytest.fixture
def mixed(command, rocket):
    """Good files around a missing one, one that is no image, and a truncated JPEG; in the working directory."""
    content = rocket.read_bytes()
    for name, part in zip(MIXED, (content, None, b"hello\n", content[:20_000], content), strict=True):
        if part is not None:
            Path(name).write_bytes(part)


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_bad_files_among_good_ones(command, form):
    code, out, err = command("infer", *MIXED, "--format", form)
    assert code == 1
    assert [line.partition(":")[0] for line in sentences(err)] == list(MIXED[1:4])
    if form == "json":
        records = json.loads(out)
    elif form == "jsonl":
        records = [json.loads(line) for line in out.splitlines()]
    elif form == "csv":
        records = list(csv.DictReader(io.StringIO(out)))
    else:
        assert len(re.findall(r" (real|unsure|generated) ", out)) == 2
        assert out.count("failed") == 3
        return
    assert [record["source"] for record in records] == list(MIXED)
    assert [bool(record["error"]) for record in records] == [False, True, True, True, False]
    assert records[0]["probability"] == records[4]["probability"]


def test_all_good_is_zero(command, photos):
    code, out, err = command("infer", *photos, "--format", "jsonl")
    assert code == 0
    for line in out.splitlines():
        record = json.loads(line)
        assert record["schema"] == "lare2-rt/detection/1"
        assert record["verdict"] in ("real", "unsure", "generated")
        assert record["bundle"]["name"] == "mini"
        assert record["engine"]["name"] == "onnxruntime"
        assert f"note: {record['decision']['note']}" in err
    assert "export/build_engines.py" in err


def test_folders_and_globs(command, fake, small):
    nested = Path("album/2024")
    nested.mkdir(parents=True)
    for name in ("b.PNG", "a.png"):
        (nested / name).write_bytes(small[0].read_bytes())
    (nested / "notes.txt").write_text("no image")
    for argument in ("album", "album/**/*.[pP]*"):
        code, out, _ = command("infer", argument, "--format", "jsonl")
        names = [json.loads(line)["source"].rsplit("/")[-1] for line in out.splitlines()]
        assert (code, names) == (0, ["a.png", "b.PNG"])
    assert command("infer", "album/*.jpg")[0] == 2
    Path("empty").mkdir()
    code, _, err = command("infer", "empty")
    assert code == 2
    assert "no images in empty" in err


@pytest.mark.parametrize(
    ("name", "form"), [("r.jsonl", "jsonl"), ("r.json", "json"), ("r.csv", "csv"), ("r.txt", "table")]
)
def test_out_takes_its_format_from_the_ending(command, fake, small, name, form):
    code, out, _ = command("infer", small[0], "--out", name)
    assert (code, out) == (0, "")
    text = Path(name).read_text()
    if form == "json":
        assert len(json.loads(text)) == 1
    elif form == "jsonl":
        assert json.loads(text)["source"] == str(small[0])
    else:
        assert str(small[0]) in text
    assert [path.name for path in Path().iterdir()] == [name]


def test_out_is_never_overwritten_without_force(command, fake, small):
    Path("r.csv").write_text("precious")
    code, _, err = command("infer", small[0], "--out", "r.csv")
    assert code == 2
    assert "--force" in err
    assert Path("r.csv").read_text() == "precious"
    assert command("infer", small[0], "--out", "r.csv", "--force")[0] == 0
    assert Path("r.csv").read_text() != "precious"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["infer", "x.jpg", "--bundle", "nowhere"], "nowhere"),
        (["infer", "x.jpg", "--engine", "cuda"], "cuda"),
        (["infer", "x.jpg", "--batch", "3"], "batch 3"),
        (["infer", "x.jpg", "--threshold", "7"], "between 0 and 1"),
        (["infer", "x.jpg", "--out", "x.weird"], "--format"),
        (["infer", "x.jpg", "--out", "no/such/folder.json"], "no/such"),
        (["infer", "x.jpg", "--format", "yaml"], "yaml"),
        (["infer", "x.jpg", "--format", "parquet"], "--out"),
        (["infer"], "--list"),
        (["inspect", "nowhere"], "nowhere"),
        (["bench", "--engine", "cuda"], "cuda"),
    ],
)
def test_usage_errors_exit_with_2(command, arguments, named):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert list(Path().iterdir()) == []


def test_colour_is_for_terminals_alone(command, fake, small, monkeypatch):
    """Whatever the environment forces on terminals, files and pipes hold plain text."""
    for variable, value in (("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1"), ("CLICOLOR_FORCE", "1"), ("COLUMNS", "20")):
        monkeypatch.setenv(variable, value)
    code, _, err = command("infer", small[0], "missing.jpg", "--out", "r.txt")
    assert code == 1
    text = Path("r.txt").read_text()
    assert str(small[0]) in text
    assert "\x1b" not in text + err
    for arguments in (("infer", small[0]), ("inspect",)):
        code, out, err = command(*arguments)
        assert code == 0
        assert "\x1b" not in out + err


def test_threshold_is_echoed(command, fake, small):
    _, out, _ = command("infer", small[0], "--threshold", "0.3", "--format", "jsonl")
    decision = json.loads(out)["decision"]
    assert decision["explicit"]
    assert decision["generated_from"] == decision["real_below"] == 0.3


def test_bundle_order(command, fake, small, tmp_path, bundle_copy, monkeypatch):
    def origin():
        return json.loads(command("infer", small[0], "--format", "jsonl")[1])["bundle"]["path"]

    assert origin() == "embedded"
    here = bundle_copy.rename(Path("engines").absolute())
    assert origin() == str(here)
    elsewhere = here.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("LARE2_BUNDLE", str(elsewhere))
    assert origin() == str(elsewhere)


def test_a_demonstration_is_marked_wherever_a_verdict_stands(command, embedded, rocket):
    """Whatever its thresholds say: here everything is called generated."""
    decision = Decision(
        calibration="calibrated", real_below=0.0, generated_from=0.0, data="nothing", demonstration=True
    )
    write_with_decision(open_bundle(embedded), Path("demo"), decision)
    words = "this model is a demonstration"
    code, out, err = command("infer", rocket, "--bundle", "demo", "--format", "csv", "--report", "r.html")
    assert code == 0
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["verdict"] == "generated"
    assert row["note"].startswith(words)
    assert f"note: {words}" in err
    page = Path("r.html").read_text()
    assert words in page.lower()
    assert "Every verdict is" not in page
    assert "measured by calibration" in page
    _, out, _ = command("infer", rocket, "--bundle", "demo", "--format", "jsonl")
    assert json.loads(out)["decision"]["note"].startswith(words)
    assert "a demonstration: calibrated" in command("inspect", "demo")[1]
    assert any(words in finding.text for finding in check_bundle("demo"))
    # A bundle that is none has neither the field nor another id for it.
    assert (
        b"demonstration" not in (embedded / "manifest.json").read_bytes()
        or open_bundle(embedded).manifest.decision.demonstration
    )


def test_inspect(command, embedded):
    code, out, _ = command("inspect", embedded)
    assert code == 0
    decision = open_bundle(embedded).manifest.decision.calibration
    for word in ("mini", decision, "unet_step", "timestep 200", "reflect101", "licence", "parity"):
        assert word in out
    manifest = json.loads(command("inspect", embedded, "--format", "json")[1])
    assert manifest == json.loads((embedded / "manifest.json").read_text())


def test_image_orientation_is_applied_once(command, rocket):
    """A turned JPEG and the same pixels without the tag score alike."""
    with Image.open(rocket) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # needs 90 degrees clockwise to be upright
        turned.save("turned.png", exif=exif)
        image.save("upright.png")
    _, out, _ = command("infer", "turned.png", "upright.png", "--format", "jsonl")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["logits"] == second["logits"]


def test_version(command):
    assert command("--version") == (0, f"lare2-rt {__version__}\n", "")


def test_what_is_not_used_is_not_imported(tmp_path):
    """Neither by the package nor by any help; the help comes up in half a second or four times a bare interpreter."""
    code = f"""
import contextlib, sys
import lare2_rt
heavy = {{"typer", *{HEAVY!r}}}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
from lare2_rt.cli import main
for command in ([], ["infer"], ["index"], ["extract"], ["bench"], ["evaluate"], ["calibrate"], ["cache", "ls"]):
    # Typer itself looks at pydantic for the help of a command with parameters.
    heavy -= {{"typer", "pydantic"}} if command else {{"typer"}}
    sys.argv = ["lare2-rt", *command, "--help"]
    with contextlib.suppress(SystemExit):
        main()
    assert not heavy & sys.modules.keys(), (command, heavy & sys.modules.keys())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    def median(*arguments):
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True, cwd=tmp_path)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    assert median("-m", "lare2_rt", "--help") < max(0.5, 4 * median("-c", "import json, argparse"))


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
