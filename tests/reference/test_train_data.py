"""What training sees: parts that share nothing, pixels and maps that belong together, LaRE computed as stored."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lare2_ref.train.assemble import build_networks
from lare2_ref.train.data import Part, Parts, order, split_parts
from lare2_ref.train.dataset import Geometry, Samples, batches, cut, shards, strong, training_view
from lare2_ref.train.options import TrainOptions, TrainRequest
from lare2_ref.weight_choice import WeightChoice
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.errors import ImageError, UsageError
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.evaluation.items import Item, select
from lare2_rt.tools.features.extract import Extraction
from lare2_rt.tools.features.reader import open_features
from lare2_rt.tools.features.sources import sources_of
from tests.fakes.engine import FakeEngine, use_engines
from tests.helpers.labelled import write_set
from tests.helpers.training import SMALL, extract, run

POLICY = Preprocessing()


def parts_of(data, features=None, share=0.25, seed=0):
    return split_parts(build_index(data).index, features, validation_share=share, seed=seed)


# Parts


def test_validation_is_drawn_by_group_from_training_images(tmp_path):
    data = write_set(tmp_path / "set", real=24, generated=16, splits=("train",))
    parts = parts_of(data)
    assert (len(parts.train), len(parts.validation), parts.test) == (30, 10, None)
    assert not {i.source for i in parts.train.items} & {i.source for i in parts.validation.items}
    assert sum(i.label for i in parts.validation.items) == 4
    again, other = parts_of(data), parts_of(data, seed=1)
    assert again.validation.items == parts.validation.items != other.validation.items


def test_named_splits_are_taken_as_they_are(tmp_path):
    data = write_set(tmp_path / "set", real=18, generated=18, splits=("train", "val", "test"))
    parts = parts_of(data)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (12, 12, 12)
    assert parts.validation_from == "val"


@pytest.mark.parametrize(("split", "other"), [("val", "validation"), ("test", "test")])
def test_a_source_in_two_parts_is_refused(split, other, tmp_path):
    data = write_set(tmp_path / "set", real=18, generated=18, splits=("train", "val", "test"))
    group = {"val": 1, "test": 2}[split]
    data.write_text(data.read_text().replace(f",{split},0-{group}\n", f",{split},0-0\n"))
    with pytest.raises(UsageError, match=rf"which is in the train part and in the {other} part"):
        parts_of(data)


def test_failed_extractions_are_left_out_and_counted(tmp_path, monkeypatch):
    data = write_set(tmp_path / "set", real=8, generated=8, splits=("train",))

    def nothing(call, output):
        if call == 3:
            output.lare[:] = np.nan

    use_engines(monkeypatch, FakeEngine(nothing))
    with Extraction.open(sources_of(str(data)), tmp_path / "features") as extraction:
        list(extraction.run())
    parts = parts_of(data, open_features(tmp_path / "features"))
    assert parts.without_lare == 1
    assert len(parts.train) + len(parts.validation) == 15
    assert (parts.train.rows >= 0).all()


def test_each_image_gets_its_own_map(tmp_path):
    """Stored maps hold the brightness of their picture, whatever the order of the index."""
    data = write_set(tmp_path / "set", real=8, generated=8, splits=("train",))
    extract(data, tmp_path / "features")
    features = open_features(tmp_path / "features")
    index = build_index(data).index.select(list(reversed(range(16))))
    parts = split_parts(index, features, validation_share=0.25, seed=0)
    bundle = open_bundle(embedded())
    geometry = Geometry(bundle.manifest.method, bundle.manifest.policy, 64)
    for part in (parts.train, parts.validation):
        samples = Samples(part, SMALL, 0, geometry=geometry, features=features, cache=None)
        for number, item in enumerate(part.items):
            brightness = preprocess(item.path, POLICY).image.mean() / 255
            sample = samples[number]
            assert sample["lare"].mean().item() == pytest.approx(brightness, rel=1e-4)
            assert sample["label"].item() == item.label
            assert np.array_equal(sample["crop"].numpy(), preprocess(item.path, POLICY, crop_size=64).crop)


def embedded():
    from lare2_rt.bundle.locate import embedded_bundle

    return embedded_bundle()


# Views


@pytest.fixture
def picture(tmp_path):
    """(Item, samples) of a 90×70 picture whose every pixel is told by its colour."""
    rows, columns = np.mgrid[:70, :90]
    samples = np.stack([rows, columns, np.full_like(rows, 7)], axis=2).astype(np.uint8)
    return write_picture(tmp_path / "a.png", samples), samples


def write_picture(path, samples, **options):
    from hashlib import sha256

    Image.fromarray(samples).save(path, **options)
    return Item(str(path), path.name, 0, "", "", sha256(path.read_bytes()).hexdigest())


def view(item, epoch=0, policy=POLICY, **options):
    return training_view(item, TrainOptions(**options), epoch, policy=policy, image_size=32, crop_size=40)


def test_centre_view_is_the_runtime_s(picture):
    item, _ = picture
    seen, expected = view(item), preprocess(item.path, POLICY, image_size=32, crop_size=40)
    assert np.array_equal(seen.crop, expected.crop)
    assert np.array_equal(seen.image, expected.image)


def test_random_view_is_a_part_around_its_window(picture):
    """Window and LaRE input come from one part of the picture, whose centre window it is."""
    item, samples = picture
    corners = set()
    for epoch in range(40):
        seen = view(item, epoch, crop="random")
        row, column = (int(v) for v in seen.crop[0, 0, :2])
        assert np.array_equal(seen.crop, samples[row : row + 40, column : column + 40])
        corners.add((row, column))
        down, right = min(row, 30 - row), min(column, 50 - column)
        part = Image.fromarray(samples[row - down : row + 40 + down, column - right : column + 40 + right])
        assert np.array_equal(seen.image, np.asarray(part.resize((32, 32), Image.Resampling.BICUBIC)))
    assert len(corners) > 30
    again = view(item, 39, crop="random")
    assert np.array_equal(again.crop, seen.crop)


def test_official_view_pairs_a_random_window_with_the_whole(picture):
    item, samples = picture
    whole = preprocess(item.path, POLICY, image_size=32, crop_size=40)
    windows = set()
    for epoch in range(10):
        seen = view(item, epoch, crop="official")
        row, column = (int(v) for v in seen.crop[0, 0, :2])
        assert np.array_equal(seen.crop, samples[row : row + 40, column : column + 40])
        assert np.array_equal(seen.image, whole.image)
        windows.add((row, column))
    assert len(windows) > 5


def test_small_pictures_are_padded_as_at_run_time(tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    item = write_picture(tmp_path / "flat.png", samples)
    seen = view(item, 3, crop="random")
    assert seen.crop.shape == (40, 40, 3)
    assert np.array_equal(seen.crop[10:30], samples[:, samples_column(seen, samples)])


def samples_column(seen, samples):
    start = next(c for c in range(21) if np.array_equal(seen.crop[10], samples[0, c : c + 40]))
    return slice(start, start + 40)


@pytest.mark.parametrize("exif", ["apply", "official", "ignore"])
def test_turned_photographs(exif, tmp_path):
    """An EXIF turn reaches each branch of a random part as it reaches those of the whole picture."""
    rows, columns = np.mgrid[:70, :90]
    samples = np.stack([rows, columns, np.full_like(rows, 7)], axis=2).astype(np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 6
    item = write_picture(tmp_path / "turned.png", samples, exif=tags)
    policy = Preprocessing(exif=exif)
    for epoch in range(5):
        seen = view(item, epoch, policy=policy, crop="random")
        upright = np.rot90(seen.crop) if exif != "ignore" else seen.crop  # undo a quarter turn clockwise
        row, column = (int(v) for v in upright[0, 0, :2])
        assert np.array_equal(upright, samples[row : row + 40, column : column + 40])


def test_strong_augmentation_is_seeded_and_for_both_branches(picture):
    item, _ = picture
    seen = [view(item, epoch, augment="strong") for epoch in range(60)]
    assert all(
        np.array_equal(a.crop, b.crop)
        for a, b in zip(seen, (view(item, e, augment="strong") for e in range(60)), strict=True)
    )
    plain = view(item)
    changed = sum(not np.array_equal(v.crop, plain.crop) for v in seen)
    assert 30 < changed < 60  # all three stay away with 0.5 · 0.67 · 0.67, and a quarter turn may turn by none
    for v in seen:
        # The blue of the picture is constant: grey or damaged in one branch is grey or damaged in the other.
        blue = [abs(float(branch[..., 2].mean()) - 7) > 4 for branch in (v.crop, v.image)]
        assert blue[0] == blue[1]


def test_all_damages_turns_and_flips_occur(picture):
    _, samples = picture
    image = Image.fromarray(samples)
    outcomes = set()
    for seed in range(200):
        result = np.asarray(strong(image, np.random.default_rng(seed), b"key"))
        clean = {
            f"{flip}{turn}": np.rot90(samples[::-1] if flip else samples, turn) for flip in (0, 1) for turn in range(4)
        }
        outcomes |= {name for name, value in clean.items() if np.array_equal(value, result)}
    assert outcomes == {f"{flip}{turn}" for flip in (0, 1) for turn in range(4)}


def test_cut_of_a_picture_of_the_window_s_size():
    image = Image.new("RGB", (40, 40))
    assert cut(image, np.random.default_rng(0), 40).size == (40, 40)


# Order and shards


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 7, 12, 13, 25])
def test_processes_share_every_batch(world, count):
    numbers = order(0, 0, count).tolist()
    assert sorted(numbers) == list(range(count))
    parts = [shards(numbers, 12, rank=rank, world=world) for rank in range(world)]
    for batch in zip(*parts, strict=True):
        assert len({len(share) for share in batch}) == 1
    seen = [n for part in parts for share in part for n in share]
    assert set(seen) == set(numbers)
    if world == 1:
        assert seen == numbers


def test_loading_leaves_torch_s_generator_alone(tmp_path):
    """Dropout after a resume must not depend on how often batches were begun."""
    data = write_set(tmp_path / "set", real=4, generated=4, splits=("train",))
    items = select(build_index(data).index, "train").items
    bundle = open_bundle(embedded())
    geometry = Geometry(bundle.manifest.method, bundle.manifest.policy, 64)
    samples = Samples(Part(items, np.full(len(items), -1)), SMALL, 0, geometry=geometry, features=None, cache=None)
    before = torch.get_rng_state()
    assert sum(len(batch["label"]) for batch in batches(samples, [[0, 1], [2]], workers=0)) == 3
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_keeps_its_remedy(tmp_path, workers):
    """Also from a decoding process: torch would rebuild the error from its text, with a traceback in front."""
    data = write_set(tmp_path / "set", real=4, generated=4, splits=("train",))
    items = select(build_index(data).index, "train").items
    manifest = open_bundle(embedded()).manifest
    geometry = Geometry(manifest.method, manifest.policy, 64)
    Path(items[1].path).unlink()
    part = Part(items, np.full(len(items), -1))
    samples = Samples(part, SMALL, 0, geometry=geometry, features=None, cache=None)
    with pytest.raises(ImageError) as refused:
        list(batches(samples, [[0], [1, 2]], workers=workers))
    assert refused.value.problem.startswith(f"{items[1].path} cannot be read")
    assert refused.value.remedy == "check the index's root"


# Computed LaRE


def test_computed_lare_is_the_extracted(tmp_path, photos):
    """With fixed noise, torch in the training loop gives the maps that the engine extracted."""
    torch.set_num_threads(1)
    rows = "".join(f"{photo},{number},sd,train\n" for number, photo in enumerate(photos[:2]))
    (tmp_path / "list.csv").write_text("path,label,generator,split\n" + rows)
    with Extraction.open(sources_of(str(tmp_path / "list.csv")), tmp_path / "features") as extraction:
        assert not [row.error for row in extraction.run() if row.error]
    features = open_features(tmp_path / "features")
    items = select(build_index(tmp_path / "list.csv").index, "train").items
    networks, batch = computed(items, tmp_path, TrainOptions(backbone="trained"))
    lare = networks.inputs(batch, torch.device("cpu"))["lare"].numpy()
    stored = features.batch(features.find(item.sha256 for item in items))
    assert np.linalg.norm(lare - stored) < 1e-4 * np.linalg.norm(stored)
    networks, batch = computed(items, tmp_path, TrainOptions(backbone="trained", noise="per-image"))
    other = networks.inputs(batch, torch.device("cpu"))["lare"].numpy()
    assert other.shape == stored.shape
    assert np.linalg.norm(other - stored) > 0.1 * np.linalg.norm(stored)
    assert not torch.equal(batch["noise"][0], batch["noise"][1])
    assert batch["noise"].std().item() == pytest.approx(1, abs=0.02)


def computed(items, tmp_path, options):
    """The networks of a run that computes LaRE, and one batch of it."""
    from accelerate import Accelerator

    bundle, sources = open_bundle(embedded()), WeightChoice().sources()
    part = Part(tuple(items), np.full(len(items), -1))
    request = TrainRequest(out=tmp_path, weights=WeightChoice(), options=options)
    parts = Parts(part, part, None, "val", 0)
    networks, _ = build_networks(request, sources, bundle, None, parts, Accelerator(cpu=True), lambda line: None)
    geometry = Geometry(bundle.manifest.method, bundle.manifest.policy, 224)
    samples = Samples(part, options, 0, geometry=geometry, features=None, cache=None)
    (batch,) = batches(samples, [list(range(len(items)))], workers=0)
    return networks, batch


@pytest.mark.slow
def test_random_parts_with_computed_lare_train(tmp_path):
    """The whole road without stored maps: cut, computed, trained; the same bits twice."""
    from tests.helpers.training import write_clip

    write_clip(tmp_path / "clip")
    data = write_set(tmp_path / "set", real=4, generated=4, size=80, splits=("train",))
    index = build_index(data).index
    options = TrainOptions(
        backbone="frozen", crop="random", augment="strong", noise="per-image", epochs=1, batch=4, validation_share=0.5
    )
    heads = []
    for name in ("one", "two"):
        with contextlib.suppress(FileExistsError):
            out = run(index, None, tmp_path / name, options)
        heads.append((out / "head.safetensors").read_bytes())
    assert heads[0] == heads[1]
