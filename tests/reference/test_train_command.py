"""Training as a command: one process or several, killed from outside, and a bundle that scores as what was trained."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer.main

from lare2_ref.head_source import find_head
from lare2_ref.train.loop import Trainer
from lare2_ref.weight_choice import WeightChoice
from lare2_rt.detection import probability_of_generated
from lare2_rt.host.integrity import sha256_of
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.datasets.table import write_index
from lare2_rt.tools.features.extract import Extraction
from lare2_rt.tools.features.sources import sources_of
from tests.conftest import ROOT
from tests.helpers.training import SMALL, run, small_set


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """(index, features) of 16 training pictures in 8 groups."""
    return small_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def mini_head(tmp_path_factory, photos):
    """(index, features, folder) of a head that was trained on mini's own CLIP with real maps."""
    folder = tmp_path_factory.mktemp("mini")
    rows = "".join(f"{photo},{number % 2},sd,train\n" for number, photo in enumerate(photos))
    (folder / "list.csv").write_text("path,label,generator,split\n" + rows)
    with Extraction.open(sources_of(str(folder / "list.csv")), folder / "features") as extraction:
        list(extraction.run())
    index = build_index(folder / "list.csv").index
    options = replace(SMALL, backbone="trained", epochs=1, validation_share=0.5)
    return folder, run(index, folder / "features", folder / "head", options, weights=WeightChoice())


@pytest.mark.slow
def test_bundle_of_a_trained_head_scores_as_the_reference(mini_head, tmp_path):
    """``build_engines.py --head`` takes it, and both ways of evaluating agree to 1e-5."""
    folder, head = mini_head
    build = [sys.executable, ROOT / "export/build_engines.py", "--head", head / "head.safetensors", "--batch", "1"]
    done = subprocess.run([*build, "--out", tmp_path / "engines"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    common = [folder / "list.csv", "--split", "all", "--resamples", "0"]
    scores = {}
    for name, command in (
        ("bundle", ["lare2_rt", "evaluate", *common, "--bundle", tmp_path / "engines"]),
        ("reference", ["lare2_ref.evaluate", *common, "--head", head / "head.safetensors"]),
    ):
        command = [sys.executable, "-m", *command, "--out", tmp_path / name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / name).glob("scores/*/clean.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:] if line]
        scores[name] = {line["sha256"]: probability_of_generated(line["logits"]) for line in lines}
    assert scores["bundle"].keys() == scores["reference"].keys()
    differences = [abs(scores["bundle"][key] - scores["reference"][key]) for key in scores["bundle"]]
    assert max(differences) <= 1e-5
    assert len(set(scores["bundle"].values())) == len(differences)
    names = {name: json.loads((tmp_path / name / "evaluation.json").read_text())["models"][0] for name in scores}
    assert names["reference"]["engine"]["name"] == "reference"
    assert names["bundle"]["decision"]["calibration"] == "uncalibrated"


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_after_kill_9(images, tmp_path):
    """Without dropout and BatchNorm, halves of a batch in two processes give the whole batch's gradient."""
    index, features = images
    write_index(tmp_path / "index.parquet", index)
    arguments = [
        "lare2_ref.train",
        tmp_path / "index.parquet",
        "--features",
        features,
        "--clip",
        features.parent / "clip",
    ]
    arguments += ["--backbone", "frozen", "--epochs", "20", "--stop-after", "0", "--batch", "4", "--dropout", "0"]
    arguments += ["--workers", "0", "--device", "cpu", "--threads", "1", "--checkpoint-steps", "1", "--out"]
    alone = [sys.executable, "-m"]
    together = [*alone, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]

    def train(launch, out):
        command = list(map(str, [*launch, *arguments, out]))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads((out / "card.json").read_text()), done.stderr

    (one, _), (two, _) = train(alone, tmp_path / "one"), train(together, tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    for early, other in zip(one["history"][:2], two["history"][:2], strict=True):
        assert early == pytest.approx(other, rel=1e-3)
    out = tmp_path / "killed"
    with subprocess.Popen(list(map(str, [*together, *arguments, out])), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(out.glob("checkpoints/step-*-000003")):  # the fourth epoch
            time.sleep(0.01)
        kill_all_of(out)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "head.safetensors").exists()
    _, said = train(together, out)
    assert "going on after epoch" in said
    assert (out / "head.safetensors").read_bytes() == (tmp_path / "two/head.safetensors").read_bytes()


def kill_all_of(out):
    """SIGKILL to every process that was started with this folder: the launcher's are in sessions of their own."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(out).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``python -m lare2_ref.train`` in this process; returns (exit code, standard error)."""
    from accelerate.state import AcceleratorState

    from lare2_ref.train.cli import main

    def call(*arguments):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            return left.code or 0, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def test_command(images, tmp_path, command):
    """A good run leaves a head; errors are one sentence and exit code 2; an interrupt says how to go on."""
    index, features = images
    write_index(tmp_path / "index.parquet", index)
    arguments = [
        tmp_path / "index.parquet",
        "--features",
        features,
        "--clip",
        features.parent / "clip",
        "--epochs",
        "1",
    ]
    arguments += ["--batch", "8", "--device", "cpu", "--workers", "1", "--threads", "1", "--out", tmp_path / "out"]
    code, err = command(*arguments)
    assert code == 0, err
    assert "epoch 1: loss" in err
    assert find_head(str(tmp_path / "out/head.safetensors")).has_clip()
    assert json.loads((tmp_path / "out/card.json").read_text())["data"]["index_sha256"] == sha256_of(
        tmp_path / "index.parquet"
    )
    code, err = command(*arguments, "--dropout", "0.5")
    assert code == 2
    assert err.splitlines()[-1].startswith("train: ")
    assert "is of a run with other options" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda self, batch, number: (_ for _ in ()).throw(KeyboardInterrupt))
        code, err = command(*arguments[:-1], tmp_path / "new")
    assert code == 130
    assert err.splitlines()[-1].startswith("train: interrupted; run the same command again")
    assert not (tmp_path / "new/head.safetensors").exists()


def test_all_commands_choose_weights_alike():
    """What a build can read, training and evaluation can read too, under the same options."""
    from lare2_export.cli import app as build_app
    from lare2_ref.evaluate import app as evaluate_app
    from lare2_ref.train.cli import app as train_app

    build, *others = (
        {param.name: (param.opts, param.default, param.help) for param in typer.main.get_command(app).params}
        for app in (build_app, evaluate_app, train_app)
    )
    names = {field.name for field in fields(WeightChoice)}
    assert names >= {"sd", "allow_pickle", "prediction_type"}
    for offered in others:
        assert {name: offered[name] for name in names} == {name: build[name] for name in names}
    assert others[0]["head"] == build["head"]


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("lare2_export.cli, lare2_ref.train.cli", "torch, diffusers"),  # --help answers at once
        ("lare2_export.build.options, lare2_ref.train.options, lare2_ref.weight_choice", "torch, typer"),
    ],
)
def test_options_are_light(modules, without):
    code = f"import sys, {modules}; print(*(set({without!r}.split(', ')) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_prediction_type_alone_is_refused_by_training_too(images, tmp_path, command):
    index, features = images
    write_index(tmp_path / "index.parquet", index)
    arguments = [tmp_path / "index.parquet", "--features", features, "--out", tmp_path / "out"]
    code, err = command(*arguments, "--prediction-type", "epsilon")
    assert code == 2
    assert err.endswith("give it as --sd too\n")
    assert not (tmp_path / "out").exists()


def test_unreadable_image_in_a_decoding_process_is_a_sentence(tmp_path, command):
    index, features = small_set(tmp_path)
    write_index(tmp_path / "index.parquet", index)
    for path in (tmp_path / "set").glob("*.png"):
        path.unlink()
    code, err = command(
        tmp_path / "index.parquet", "--features", features, "--clip", tmp_path / "clip", "--device", "cpu",
        "--workers", "1", "--threads", "1", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"train: {tmp_path}/set/")
    assert last.endswith("cannot be read (No such file or directory); check the index's root")
