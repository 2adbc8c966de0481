"""Training: the same bits from one seed and after any interruption, official recipe, results that can be built."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from labelled import write_set
from training import SMALL, extract, killed_after, run, small_set

from lare2_ref.chosen import Chosen
from lare2_ref.clip_source import ClipCheckpoint, ClipFolder
from lare2_ref.head_source import find_head
from lare2_ref.train.loop import Trainer
from lare2_ref.train.options import TrainOptions
from lare2_ref.train.progress import EpochRecord, Progress
from lare2_rt.bundle import open_bundle
from lare2_rt.datasets import build_index, write_index
from lare2_rt.detection import probability_of_generated
from lare2_rt.errors import ImageError, Lare2Error, UsageError
from lare2_rt.features import Extraction, sources_of
from lare2_rt.integrity import sha256_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """(index, features) of 16 training pictures in 8 groups."""
    return small_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """One run without interruption for each backbone."""
    runs = {}

    def get(backbone):
        if backbone not in runs:
            out = tmp_path_factory.mktemp("whole") / backbone
            runs[backbone] = run(*images, out, recipe(backbone))
        return runs[backbone]

    return get


def recipe(backbone, **changes):
    from dataclasses import replace

    return replace(SMALL, backbone=backbone, **changes)


def clip_of(images):
    return Chosen(clip=str(images[1].parent / "clip"))


RESULTS = ("head.safetensors", "card.json", "card.md", "config.json")


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.mark.parametrize("backbone", ["frozen", "trained"])
def test_same_bits_again_and_after_kills(backbone, images, whole, tmp_path):
    """Killed in the first epoch, between two checkpoints of the second, and right before the end."""
    expected = results(whole(backbone))
    for steps in (2, 2, 1):
        with killed_after(steps):
            run(*images, tmp_path / "out", recipe(backbone, checkpoint_steps=2))
        assert not (tmp_path / "out/head.safetensors").exists()
    run(*images, tmp_path / "out", recipe(backbone, checkpoint_steps=2))
    found = results(tmp_path / "out")
    assert found["head.safetensors"] == expected["head.safetensors"]
    card, same = json.loads(found["card.json"]), json.loads(expected["card.json"])
    assert card["history"] == same["history"]
    run(*images, tmp_path / "again", recipe(backbone))
    assert results(tmp_path / "again") == expected
    # A finished run writes the same once more.
    run(*images, tmp_path / "again", recipe(backbone))
    assert results(tmp_path / "again") == expected


def test_another_seed_is_another_head(images, whole, tmp_path):
    run(*images, tmp_path / "out", recipe("frozen", seed=1))
    assert results(tmp_path / "out")["head.safetensors"] != results(whole("frozen"))["head.safetensors"]


@pytest.mark.slow
def test_decoding_processes_change_nothing(images, whole, tmp_path):
    run(*images, tmp_path / "out", recipe("trained"), workers=2)
    assert results(tmp_path / "out")["head.safetensors"] == results(whole("trained"))["head.safetensors"]


def test_kept_clip_features_are_those_of_clip(images, whole, tmp_path):
    """Only the batches differ in which CLIP computed them, so runs agree to rounding."""
    out = run(*images, tmp_path / "out", recipe("frozen"), clip_cache=False)
    assert not (out / "clip").exists()
    kept, computed = (json.loads((f / "card.json").read_text())["history"] for f in (whole("frozen"), out))
    for one, other in zip(kept, computed, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_learns_what_there_is_to_learn(tmp_path):
    index, features = small_set(tmp_path, real=16, generated=16, overlap=-1)
    out = run(index, features, tmp_path / "out", recipe("frozen", epochs=5, learning_rate=1e-2, checkpoint_steps=0))
    card = json.loads((out / "card.json").read_text())
    assert card["best_epoch"]["auc"] == 1.0
    assert card["history"][-1]["training_loss"] < 0.5 * card["history"][0]["training_loss"]


@pytest.mark.parametrize("head", ["v6", "v7"])
def test_head_file_is_what_was_trained(head, images, tmp_path):
    """It loads by the strict road of ``build_engines.py --head``, and gives the logits that the trainer measured."""
    kept = {}
    original = Trainer.logits

    def logits(self, part):
        kept["trainee"], kept["logits"] = self.trainee, original(self, part)
        return kept["logits"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "logits", logits)
        out = run(*images, tmp_path / "out", recipe("trained", head=head, epochs=1))
    source = find_head(str(out / "head.safetensors"))
    assert source.has_clip()
    loaded = source.head()
    assert loaded.config.head == head
    config = json.loads((out / "config.json").read_text())
    assert config == kept["trainee"].egre.config.as_dict()
    clip = ClipCheckpoint(out / "head.safetensors").backbone()
    generator = torch.Generator().manual_seed(0)
    crop = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    lare = torch.rand((2, 4, 32, 32), generator=generator)
    with torch.no_grad():
        features = clip(crop)
        expected = kept["trainee"].eval()(lare, crop=crop)
        assert torch.equal(loaded(lare, features.embedding, features.layer3).logits, expected)
    # BatchNorm statistics were trained too, as the official script does.
    before = ClipFolder(images[1].parent / "clip", "tiny", "none").backbone().visual.bn1.running_mean
    assert not torch.equal(before, clip.visual.bn1.running_mean)


def test_frozen_clip_stays_and_is_not_stored(images, whole):
    source = find_head(str(whole("frozen") / "head.safetensors"))
    assert not source.has_clip()


def test_card_says_what_the_head_is(images, whole, embedded):
    folder = whole("frozen")
    card = json.loads((folder / "card.json").read_text())
    manifest = open_bundle(embedded).manifest
    assert card["lare_id"] == manifest.lare_id
    assert card["data"]["train"]["real"] + card["data"]["validation"]["real"] == 8
    assert card["data"]["validation_from"] == "train"
    assert card["data"]["test"] is None
    assert card["test"] is None
    assert len(card["history"]) == card["epochs"] == 2
    assert card["best_epoch"] in card["history"]
    assert {s["role"] for s in card["sources"]} == {"vae", "unet", "scheduler", "text_encoder", "clip"}
    assert card["options"]["learning_rate"] == 1e-3
    text = (folder / "card.md").read_text()
    assert "kept apart from them by source" in text
    assert manifest.lare_id in text


def test_test_images_are_measured_once_at_the_end(tmp_path):
    index, features = small_set(tmp_path, real=18, generated=18, splits=("train", "val", "test"))
    seen = []
    original = Trainer.logits

    def logits(self, part):
        seen.append(len(part))
        return original(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "logits", logits)
        out = run(index, features, tmp_path / "out")
    assert seen == [12] * 4  # validation after each of two epochs and at the end, then test
    card = json.loads((out / "card.json").read_text())
    assert card["data"]["validation_from"] == "val"
    assert card["test"]["real"] == card["test"]["generated"] == 6
    assert "## Test" in (out / "card.md").read_text()


# The recipe


def test_defaults_are_the_official_recipe():
    options = TrainOptions()
    assert (options.learning_rate, options.batch, options.clip_norm) == (1e-4, 48, 5.0)
    assert (options.factor, options.patience, options.min_learning_rate) == (0.5, 4, 1e-7)
    assert (options.head, options.backbone, options.augment, options.dropout) == ("v6", "trained", "none", 0.1)


def test_step_is_adam_on_clipped_cross_entropy(images, tmp_path):
    """The first step against the same by hand: loss, gradient of norm 5 at most, Adam's first move."""
    seen = {}
    original = Trainer._step

    def step(self, batch, number):
        parameters = [p for p in self.trainee.parameters() if p.requires_grad]
        if number == 0:
            with torch.no_grad():
                self.trainee.egre.classifier.weight.mul_(1e4)
            seen["before"] = [p.detach().clone() for p in parameters]
        loss = original(self, batch, number)
        if number == 0:
            seen["loss"], seen["batch"] = loss, batch
            seen["gradients"] = [p.grad.clone() for p in parameters]
            seen["after"] = [p.detach().clone() for p in parameters]
            seen["trainee"] = self.trainee
            seen["optimiser"] = self._optimiser.optimizer
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        run(*images, tmp_path / "out", recipe("frozen", epochs=1, dropout=0.0, learning_rate=1e-4))
    assert type(seen["optimiser"]) is torch.optim.Adam
    assert seen["optimiser"].param_groups[0]["weight_decay"] == 0
    trainee = seen["trainee"]
    with torch.no_grad():
        for parameter, value in zip(trainee.egre.parameters(), seen["before"], strict=True):
            parameter.copy_(value)
    batch = seen["batch"]
    trainee.zero_grad()
    logits = trainee(batch["lare"], embedding=batch["embedding"], layer3=batch["layer3"])
    loss = torch.nn.functional.cross_entropy(logits, batch["label"])
    assert loss.item() == pytest.approx(seen["loss"], rel=1e-5)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainee.egre.parameters()])
    assert norm > 50
    clipped = torch.nn.utils.get_total_norm(seen["gradients"])
    assert float(clipped) == pytest.approx(5, rel=1e-3)
    for before, after, gradient in zip(seen["before"], seen["after"], seen["gradients"], strict=True):
        moved = -1e-4 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(after, before + moved, rtol=1e-5, atol=1e-7)


def record(epoch, auc, loss=0.5):
    return EpochRecord(epoch, 1e-4, 0.5, loss, auc, auc, auc)


def test_best_and_early_stop():
    options = TrainOptions(stop_after=2, epochs=100)
    progress = Progress()
    better = [
        progress.took_epoch(record(i, auc, loss), options)
        for i, (auc, loss) in enumerate([(0.6, 0.5), (0.7, 0.5), (0.7, 0.4), (0.7, 0.4), (0.6, 0.1)])
    ]
    assert better == [True, True, True, False, False]
    assert progress.best.epoch == 2
    assert progress.finished
    assert Progress.from_dict(json.loads(json.dumps(progress.as_dict()))) == progress
    never = Progress()
    for epoch in range(30):
        never.took_epoch(record(epoch, 0.5), TrainOptions(stop_after=0, epochs=31))
    assert not never.finished


def test_learning_rate_falls_on_a_plateau_and_after_a_resume(images, tmp_path):
    """Validation AUC is made to stand still: after patience + 1 epochs the rate halves, interrupted or not."""
    original = Trainer._measure

    def measure(self, progress, rate):
        from dataclasses import replace

        return replace(original(self, progress, rate), auc=0.5)

    options = recipe("frozen", epochs=7, checkpoint_steps=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_measure", measure)
        with killed_after(4 * 4):
            run(*images, tmp_path / "out", options)
        run(*images, tmp_path / "out", options)
    rates = [r["learning_rate"] for r in json.loads((tmp_path / "out/card.json").read_text())["history"]]
    assert rates == [1e-3] * 6 + [5e-4]


def test_half_precision_trains(images, tmp_path):
    out = run(*images, tmp_path / "out", recipe("frozen", epochs=1, precision="bf16"))
    head = find_head(str(out / "head.safetensors")).head()
    assert all(p.dtype == torch.float32 for p in head.parameters())


def test_curves(images, tmp_path):
    out = run(*images, tmp_path / "out", recipe("frozen", epochs=1), tensorboard=True)
    (path,) = (out / "tensorboard").iterdir()
    assert path.stat().st_size > 200


# Refusals


def test_other_options_do_not_go_on_from_a_checkpoint(images, tmp_path):
    with killed_after(2):
        run(*images, tmp_path / "out")
    with pytest.raises(UsageError, match="is of a run with other options, data or weights"):
        run(*images, tmp_path / "out", recipe("frozen", learning_rate=2e-3))
    with pytest.raises(UsageError, match="is of a run with other options, data or weights"):
        run(images[0].select(range(2, 16)), images[1], tmp_path / "out")


def test_foreign_folder_is_left_alone(images, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="holds something that is not a training run"):
        run(*images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_features_of_another_lare_are_refused(images, tmp_path):
    import shutil

    shutil.copytree(images[1], tmp_path / "features")
    path = tmp_path / "features/features.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["lare_id"], "0" * 64))
    with pytest.raises(UsageError, match="holds features of LaRE 000000000000"):
        run(images[0], tmp_path / "features", tmp_path / "out", weights=clip_of(images))


def test_another_stable_diffusion_is_refused(images, tmp_path):
    from lare2_ref.mini import write_mini

    write_mini(tmp_path / "model", seed=5)
    with pytest.raises(UsageError, match=r"is not the one that mini .* was built from"):
        run(images[0], None, tmp_path / "out", weights=Chosen(model=str(tmp_path / "model")))


def test_changed_image_is_refused(tmp_path):
    index, features = small_set(tmp_path)
    (tmp_path / "set/0-0001.png").write_bytes((tmp_path / "set/0-0002.png").read_bytes())
    with pytest.raises(ImageError, match=r"0-0001\.png is another file than when the index was written"):
        run(index, features, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "word"), [({"epochs": 0}, "epochs"), ({"dropout": 1.0}, "dropout"), ({"learning_rate": 0.0}, "rate")]
)
def test_impossible_options(changes, word, images, tmp_path):
    with pytest.raises(UsageError, match=word):
        run(*images, tmp_path / "out", recipe("frozen", **changes))


def test_full_disk_is_a_sentence(images, tmp_path, monkeypatch):
    import accelerate

    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accelerate.Accelerator, "save_state", full)
    with pytest.raises(Lare2Error, match="no space left on device; free some space and run the same command again"):
        run(*images, tmp_path / "out")


def test_unextracted_images_are_named(images, tmp_path):
    more = build_index(write_set(tmp_path / "more", real=9, generated=8, splits=("train",))).index
    extract(write_set(tmp_path / "less", real=4, generated=4, splits=("train",)), tmp_path / "features")
    with pytest.raises(UsageError, match=r"images have no LaRE in .*; extract them with 'lare2-rt extract'"):
        run(more, tmp_path / "features", tmp_path / "out", weights=clip_of(images))


# The whole road


@pytest.fixture(scope="module")
def mini_head(tmp_path_factory, photos):
    """(index, features, folder) of a head that was trained on mini's own CLIP with real maps."""
    folder = tmp_path_factory.mktemp("mini")
    rows = "".join(f"{photo},{number % 2},sd,train\n" for number, photo in enumerate(photos))
    (folder / "list.csv").write_text("path,label,generator,split\n" + rows)
    with Extraction.open(sources_of(str(folder / "list.csv")), folder / "features") as extraction:
        list(extraction.run())
    index = build_index(folder / "list.csv").index
    options = recipe("trained", epochs=1, validation_share=0.5)
    return folder, run(index, folder / "features", folder / "head", options, weights=Chosen())


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
def test_two_processes_train_as_one(images, tmp_path):
    """Without dropout and BatchNorm, halves of a batch in two processes give the whole batch's gradient."""
    index, features = images
    write_index(tmp_path / "index.parquet", index)
    common = [tmp_path / "index.parquet", "--features", features, "--clip", features.parent / "clip"]
    common += ["--backbone", "frozen", "--epochs", "2", "--batch", "4", "--dropout", "0", "--workers", "0"]
    common += ["--device", "cpu", "--threads", "1"]
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    histories = []
    for name, start in (("one", []), ("two", launch)):
        command = [sys.executable, "-m", *start, "lare2_ref.train", *common, "--out", tmp_path / name]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        card = json.loads((tmp_path / name / "card.json").read_text())
        assert card["processes"] == (2 if start else 1)
        histories.append(card["history"])
    for one, two in zip(*histories, strict=True):
        assert one == pytest.approx(two, rel=1e-3)


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
