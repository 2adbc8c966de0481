"""The miniature: photographs and splits, the start of the autoencoder, training, LaRE, statistics."""

import csv
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.miniature import unet as miniature_unet, vae as miniature_vae
from benchmarks.miniature.collect import credits_of, rcc_files, subject
from benchmarks.miniature.photos import PHOTOS, cut, fingerprints, read_table, split_groups
from benchmarks.miniature.protocol import FULL, QUICK, SPLITS
from benchmarks.miniature.report import nearest
from benchmarks.miniature.stats import Complexity, Resamples, auc, paired_dz
from benchmarks.miniature.unet import Extraction, as_the_runtime_sees, noises
from benchmarks.miniature.vae import as_tensor
from lare2_ref.lare import LareExtractor
from lare2_ref.sources import default_model_folder, open_model_folder
from lare2_rt.errors import UsageError
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess

OPEN = ("public domain", "cc0", "cc-by", "cc by")


class TestPhotographs:
    def test_every_file_is_in_the_table_with_an_open_licence_and_a_name(self):
        with (PHOTOS / "photos.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) >= 200
        assert {row["file"] for row in rows} | {"photos.csv"} == {path.name for path in PHOTOS.iterdir()}
        for row in rows:
            assert row["licence"].lower().replace("-domain", " domain").startswith(OPEN), row
            assert "nc" not in row["licence"].lower(), row
            assert row["author"], row
            assert row["source"], row
            assert len(row["original_sha256"]) == 64
            with Image.open(PHOTOS / row["file"]) as picture:
                assert picture.size == (int(row["width"]), int(row["height"]))
        assert len({row["original_sha256"] for row in rows}) == len(rows)

    def test_a_changed_photograph_is_refused(self, tmp_path):
        for path in PHOTOS.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        changed = sorted(tmp_path.glob("*.jpg"))[7]
        changed.write_bytes(changed.read_bytes()[:-1] + b"x")
        with pytest.raises(UsageError, match=f"{changed.name} is not the photograph of the table") as caught:
            read_table(tmp_path)
        assert caught.value.remedy == "check it out again"

    def test_no_group_and_no_photograph_stands_in_two_splits(self):
        rows = read_table()
        of_group = split_groups(rows, FULL)
        assert set(of_group.values()) == set(SPLITS)
        files = {split: {row.file for row in rows if of_group[row.group] == split} for split in SPLITS}
        assert sum(map(len, files.values())) == len(rows)
        for split, share in zip(SPLITS, FULL.shares, strict=True):
            assert abs(len(files[split]) / len(rows) - share) < 0.06, split

    def test_no_picture_is_like_one_of_another_split(self):
        """Fingerprints find the same view in two groups, which names do not: whole photographs, as they are."""
        rows = read_table()
        of_group = split_groups(rows, FULL)
        prints = {
            split: fingerprints([np.asarray(Image.open(PHOTOS / r.file)) for r in rows if of_group[r.group] == split])
            for split in SPLITS
        }
        for i, a in enumerate(SPLITS):
            for b in SPLITS[i + 1 :]:
                assert nearest(prints[a], prints[b]) > 5, (a, b)
        copy = Image.open(PHOTOS / rows[0].file).resize((300, 200))
        for planted in (copy, copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            assert nearest(prints[of_group[rows[0].group]], fingerprints([np.asarray(planted)])) <= 5

    def test_pictures_do_not_change_when_another_photograph_joins(self):
        rows = read_table()
        some = [row for row in rows if split_groups(rows, QUICK)[row.group] == "test"]
        whole = cut(rows, "test", QUICK)
        assert whole.pixels.shape == (len(some), 128, 128, 3)
        again = cut(rows, "test", replace(QUICK, crops=(2, 1, 1, 2)))
        assert np.array_equal(again.pixels[::2], whole.pixels)

    def test_credits_and_subjects(self):
        text = (
            "Copyright: A B\nSource: https://x/y\nLicense: CC0-1.0\nFiles:\none.webp\ntwo.webp\n\nFiles: three.webp\n"
        )
        found = credits_of(text + "License: Public Domain\nCopyright: C\n")
        assert found["two.webp"] == ("A B", "CC0-1.0", "https://x/y")
        assert found["three.webp"] == ("C", "Public Domain", "")
        assert subject("windmill12.webp") == subject("windmill.webp")

    def test_resource_archive(self):
        name = "a".encode("utf-16-be")
        names = struct.pack(">HI", 1, 0) + name
        tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHHHIQ", 0, 0, 0, 1, 0, 0)
        data = struct.pack(">I", 5) + b"hello"
        head = 24
        parts = struct.pack(">4sIIIII", b"qres", 3, head, head + len(tree), head + len(tree) + len(data), 0)
        assert list(rcc_files(parts + tree + data + names)) == [("/a", b"hello")]
        with pytest.raises(ValueError, match="not a Qt resource archive"):
            list(rcc_files(b"PK\3\4"))


@pytest.fixture(scope="module")
def components():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    pictures = as_tensor(pixels)
    noisy = pictures + 0.1 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return miniature_vae.Components(noisy), pictures


class TestAutoencoder:
    def test_it_begins_as_the_principal_components(self, components):
        found, pictures = components
        vae = miniature_vae.new_autoencoder(found)
        with torch.no_grad():
            mean, log_variance = miniature_vae.encode_half(vae, pictures)
        patches = F.pixel_unshuffle(pictures, 4).permute(0, 2, 3, 1).double()
        expected = (patches @ found.down.T + found.offset).permute(0, 3, 1, 2)
        assert (mean - expected).abs().max() < 0.01 * expected.abs().max()
        assert (log_variance < -4).all()

    def test_half_of_it_on_half_the_picture_is_all_of_it(self, components):
        found, pictures = components
        vae = miniature_vae.new_autoencoder(found)
        doubled = F.interpolate(pictures, scale_factor=2, mode="nearest")
        with torch.no_grad():
            whole = vae.encode(doubled).latent_dist.mean
            half, _ = miniature_vae.encode_half(vae, pictures)
        assert torch.allclose(whole, half, atol=1e-4)

    def test_training_breaks_nothing_and_latents_are_normal(self):
        rows = read_table()
        pixels = cut(rows, "validation", QUICK).pixels[:, :64, :64]
        vae, decoder, facts = miniature_vae.train(pixels, pixels, steps=12, batch=8, seed=0, say=lambda line: None)
        assert facts["psnr"] > facts["psnr_components"] - 1  # dB; twelve steps move it either way
        with torch.no_grad():
            mean, _ = miniature_vae.encode_half(vae, as_tensor(pixels))
        assert torch.allclose(mean.mean((0, 2, 3)), torch.zeros(4), atol=0.05)
        assert torch.allclose(mean.std((0, 2, 3)), torch.ones(4), atol=0.05)
        assert abs(miniature_vae.psnr(vae, decoder, as_tensor(pixels)) - facts["psnr"]) < 0.5


def test_a_broken_training_ends_where_an_unbroken_one_does(tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    latents = miniature_unet.Latents(torch.randn(8, 4, 16, 16, generator=draw), torch.full((8, 4, 16, 16), 0.02))
    prompt = torch.randn(1, 3, 32, generator=draw)

    def train(name):
        given = {"steps": 4, "batch": 2, "seed": 0, "checkpoint": tmp_path / name, "say": lambda line: None}
        return miniature_unet.train(miniature_unet.new_unet(0), latents, latents, prompt, **given)

    def breaking(*arguments, left=[2]):  # noqa: B006 - counts down
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        average(*arguments)

    monkeypatch.setattr(miniature_unet, "_CHECKPOINT_STEPS", 1)
    average = miniature_unet.average
    whole, curve = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(miniature_unet, "average", breaking)
        with pytest.raises(KeyboardInterrupt):
            train("broken")
    said = []
    monkeypatch.setattr(torch, "load", lambda *a, load=torch.load, **k: said.append(1) or load(*a, **k))
    rest, curve_again = train("broken")
    assert said, "it began anew"
    assert curve == curve_again
    for key, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[key]), key


def test_lare_is_the_references():
    """The miniature computes LaRE with its own loop over draws; the reference is what the runtime is held against."""
    sources = open_model_folder(default_model_folder())
    vae, unet, prompt = sources.vae(), sources.unet(), sources.prompt_embeds("a photo")
    reference = LareExtractor(vae, unet, sources.scheduler(), prompt_embeds=prompt)
    noise = noises(4)
    pixels = cut(read_table(), "validation", QUICK).pixels[:2]
    image = torch.from_numpy(np.stack([preprocess(Image.fromarray(p), Preprocessing()).image for p in pixels]))
    with torch.no_grad():
        expected = reference(image, torch.from_numpy(noise.posterior), torch.from_numpy(noise.ensemble))
    extraction = Extraction(vae, unet, prompt)
    found = extraction.maps(expected.latent, noise.ensemble, 200)
    assert np.allclose(found, expected.lare.numpy(), rtol=1e-4, atol=1e-5)
    halves = as_the_runtime_sees(pixels)
    assert torch.allclose(halves, F.avg_pool2d((image.permute(0, 3, 1, 2).float() / 255 - 0.5) * 2, 2))


class TestStatistics:
    def test_areas_are_scikit_learns(self):
        random = np.random.default_rng(0)
        low, high = random.normal(0, 1, 90).round(1), random.normal(0.7, 1, 70).round(1)
        truth = np.r_[np.zeros(90), np.ones(70)]
        expected = roc_auc_score(truth, np.r_[low, high])
        assert auc(low, high) == pytest.approx(expected)
        groups_low, groups_high = random.integers(0, 12, 90), random.integers(0, 12, 70)
        resamples = Resamples(np.r_[groups_low, groups_high], count=200)
        found = resamples.auc([(low, high)], groups_low, groups_high)
        assert found.value == pytest.approx(expected)
        assert found.low < expected < found.high
        row = resamples.weights[3]
        repeated = [np.repeat(v, row[g].astype(int)) for v, g in ((low, groups_low), (high, groups_high))]
        by_hand = roc_auc_score(np.r_[np.zeros(len(repeated[0])), np.ones(len(repeated[1]))], np.concatenate(repeated))
        one = Resamples(np.r_[groups_low, groups_high], count=200)
        one.weights = one.weights[3:4].repeat(5, 0)
        assert one.auc([(low, high)], groups_low, groups_high).low == pytest.approx(by_hand)

    def test_a_difference_on_the_same_pictures_is_surer_than_its_parts(self):
        """Two scores that share most of their noise; and none at all between a score and itself."""
        random = np.random.default_rng(3)
        groups = np.arange(60)
        low, high = random.normal(0, 1, 60), random.normal(1, 1, 60)
        better = (low - 0.3, high)
        resamples = Resamples(groups, count=500)
        same = resamples.auc_difference([(low, high)], [(low, high)], groups, groups)
        assert (same.value, same.low, same.high) == (0, 0, 0)
        found = resamples.auc_difference([better], [(low, high)], groups, groups)
        assert found.value == pytest.approx(auc(*better) - auc(low, high))
        alone = resamples.auc([better], groups, groups)
        assert 0 < found.low < found.value
        assert found.high - found.low < (alone.high - alone.low) / 2

    def test_intervals_are_over_photographs_not_pictures(self):
        """Ten pictures of each photograph that say the same are no more evidence than one."""
        random = np.random.default_rng(1)
        values, groups = random.normal(0, 1, 20), np.arange(20)
        once = Resamples(groups, count=500).mean(values, groups)
        tenfold = Resamples(groups, count=500).mean(values.repeat(10), groups.repeat(10))
        assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low)

    def test_complexity_is_taken_away(self):
        random = np.random.default_rng(2)
        energy = np.exp(random.normal(0, 0.6, 400))
        lare = 0.3 * energy**0.8 * np.exp(random.normal(0, 0.05, 400))
        fit = Complexity(lare, energy)
        assert fit.correlation > 0.95
        left = fit.normalised(lare, energy)
        assert abs(np.corrcoef(left, np.log(energy))[0, 1]) < 1e-6
        assert paired_dz(fit.normalised(0.9 * lare, energy), left) < -1e6


def test_accuracy_weighs_both_classes_alike():
    groups = np.arange(4)
    found = Resamples(groups, count=50).accuracy(
        [(np.array([-1.0, -1, 1, 1]), np.array([1.0, 1, 1, 1]))], groups, groups
    )
    assert found.value == 0.75
