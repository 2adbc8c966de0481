"""Training: the same bits from one seed and after any interruption, official recipe, results that can be built."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file

from lare2_ref.clip_source import ClipCheckpoint, ClipFolder
from lare2_ref.head_source import find_head
from lare2_ref.train.checkpoint import EpochRecord, Progress
from lare2_ref.train.loop import Trainer
from lare2_ref.train.options import TrainOptions
from lare2_ref.weight_choice import WeightChoice
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.errors import ImageError, Lare2Error, UsageError
from lare2_rt.tools.datasets.build import build_index
from tests.helpers.labelled import write_set
from tests.helpers.training import SMALL, extract, killed_after, run, small_set


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
    return WeightChoice(clip=str(images[1].parent / "clip"))


PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}
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


def scripted(aucs):
    """Let the validation AUC of epoch i be ``aucs[i]``."""
    from dataclasses import replace

    original = Trainer._measure

    def measure(self, progress, rate):
        return replace(original(self, progress, rate), auc=aucs[progress.epoch])

    patch = pytest.MonkeyPatch()
    patch.setattr(Trainer, "_measure", measure)
    return patch


def test_training_stops_early_and_keeps_the_best_epoch(images, tmp_path):
    """The head is that of the best epoch, to the bit, and not that of the last."""
    options = recipe("frozen", epochs=9, stop_after=2, checkpoint_steps=0)
    with contextlib.closing(Undo(scripted([0.6, 0.7, 0.5, 0.5, 0.9]))):
        run(*images, tmp_path / "stopped", options)
    card = json.loads((tmp_path / "stopped/card.json").read_text())
    assert (card["epochs"], card["best_epoch"]["epoch"]) == (4, 2)
    run(*images, tmp_path / "two", recipe("frozen", epochs=2, checkpoint_steps=0))
    heads = [load_file(tmp_path / name / "head.safetensors") for name in ("stopped", "two")]
    two = json.loads((tmp_path / "two/card.json").read_text())
    assert two["best_epoch"]["epoch"] == 2  # so that its head is the second epoch's as well
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


class Undo:
    """Undoes a patch when it is closed."""

    def __init__(self, patch):
        self.close = patch.undo


def test_learning_rate_falls_on_a_plateau_and_after_a_resume(images, tmp_path):
    """Validation AUC is made to stand still: after patience + 1 epochs the rate halves, interrupted or not."""
    options = recipe("frozen", epochs=7, checkpoint_steps=0)
    with contextlib.closing(Undo(scripted([0.5] * 7))):
        with killed_after(4 * 4):
            run(*images, tmp_path / "out", options)
        run(*images, tmp_path / "out", options)
    rates = [r["learning_rate"] for r in json.loads((tmp_path / "out/card.json").read_text())["history"]]
    assert rates == [1e-3] * 6 + [5e-4]


@pytest.mark.parametrize("precision", PRODUCTS)
def test_half_precision_of_the_forward_pass(precision, images, tmp_path):
    """Products are computed in it; weights, gradients and the optimiser's moments stay in float32."""
    products, states = set(), set()
    original = Trainer._step

    def step(self, batch, number):
        classifier = self.trainee.egre.classifier
        with contextlib.closing(Handle(classifier, lambda output: products.add(output.dtype))):
            loss = original(self, batch, number)
        states.update(p.grad.dtype for p in self.trainee.egre.parameters())
        moments = (m for state in self._optimiser.optimizer.state.values() for m in state.values())
        states.update(m.dtype for m in moments)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        out = run(*images, tmp_path / "out", recipe("frozen", epochs=1, precision=precision))
    assert products == {PRODUCTS[precision]}
    assert states == {torch.float32}
    head = find_head(str(out / "head.safetensors")).head()
    assert all(p.dtype == torch.float32 for p in head.parameters())


class Handle:
    """Watches the output of a module until it is closed."""

    def __init__(self, module, seen):
        self.close = module.register_forward_hook(lambda module, inputs, output: seen(output)).remove


def test_precision_that_the_device_has_not_is_a_sentence(images, tmp_path, monkeypatch):
    """accelerate itself trains in float32 on a CPU when it is asked for fp16, and on other devices it raises."""
    with pytest.raises(UsageError) as refused:
        run(*images, tmp_path / "out", recipe("frozen", precision="fp16"))
    assert refused.value.remedy == "choose --precision bf16 or fp32"

    import accelerate

    def refuse(self, *arguments, **options):
        raise ValueError("no such thing")

    monkeypatch.setattr(accelerate.Accelerator, "__init__", refuse)
    with pytest.raises(UsageError, match="no such thing") as refused:
        run(*images, tmp_path / "out", recipe("frozen", precision="bf16"))
    assert refused.value.remedy == "choose another --precision"
    assert not (tmp_path / "out").exists()


def test_curves_hold_every_epoch_once_also_after_an_interruption(images, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = recipe("frozen", epochs=3, checkpoint_steps=0)
    with killed_after(4):  # one epoch has four steps
        run(*images, tmp_path / "out", options, tensorboard=True)
    run(*images, tmp_path / "out", options, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "out/tensorboard")).Reload()
    history = json.loads((tmp_path / "out/card.json").read_text())["history"]
    assert set(events.Tags()["scalars"]) == history[0].keys() - {"epoch"}
    for name in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in history]


def test_shows_how_far_it_is(images, tmp_path):
    """Each epoch and CLIP's features, in images; after an interruption from where it goes on."""
    seen = []

    @contextlib.contextmanager
    def show(verb):
        yield lambda done, total: seen.append((verb, done, total))

    options = recipe("frozen", epochs=1)
    with killed_after(2):
        run(*images, tmp_path / "out", options, show=show)
    run(*images, tmp_path / "out", options, show=show)
    parts = json.loads((tmp_path / "out/card.json").read_text())["data"]
    train = parts["train"]["real"] + parts["train"]["generated"]
    assert ("CLIP features", 16, 16) in seen
    steps = [min(done, train) for done in range(4, train + 4, 4)]
    assert [done for verb, done, total in seen if verb == "epoch 1" and total == train] == steps


# Refusals


def test_other_options_do_not_go_on_from_a_checkpoint(images, tmp_path):
    with killed_after(2):
        run(*images, tmp_path / "out")
    with pytest.raises(UsageError, match="name another --out, or remove it"):
        run(*images, tmp_path / "out", recipe("frozen", learning_rate=2e-3))
    with pytest.raises(UsageError, match="name another --out, or remove it"):
        run(images[0].select(range(2, 16)), images[1], tmp_path / "out")


def test_foreign_folder_is_left_alone(images, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="name another --out"):
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
        run(images[0], None, tmp_path / "out", weights=WeightChoice(model=tmp_path / "model"))


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
    with pytest.raises(Lare2Error, match="no space left on device; free some space"):
        run(*images, tmp_path / "out")


def test_unextracted_images_are_named(images, tmp_path):
    more = build_index(write_set(tmp_path / "more", real=9, generated=8, splits=("train",))).index
    extract(write_set(tmp_path / "less", real=4, generated=4, splits=("train",)), tmp_path / "features")
    with pytest.raises(UsageError, match="lare2-rt extract"):
        run(more, tmp_path / "features", tmp_path / "out", weights=clip_of(images))
