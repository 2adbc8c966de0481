"""Corruptions: the same bits each time, the damage that their names promise, and the same picture for both branches."""

import hashlib
import io
import math

import numpy as np
import pytest
from PIL import Image, ImageCms

from lare2_rt.errors import ImageError
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess
from lare2_rt.tools.evaluation.corruptions import CORRUPTIONS, choose, corrupt
from tests.helpers.refusals import refused

POLICY = Preprocessing()


def pixels(path, name, *, policy=POLICY, key="0"):
    return np.asarray(corrupt(path, CORRUPTIONS[name], policy=policy, key=key))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_deterministic_and_not_idle(name, rocket):
    first = pixels(rocket, name)
    assert first.dtype == np.uint8
    assert first.shape == ((214, 320, 3) if name == "half" else (427, 640, 3))
    assert np.array_equal(first, pixels(rocket, name))
    if name != "half":
        assert not np.array_equal(first, np.asarray(Image.open(rocket)))


def test_damage_grows_with_the_degree(rocket):
    clean = np.asarray(Image.open(rocket)).astype(float)
    for names in (("jpeg95", "jpeg90", "jpeg75", "jpeg50", "jpeg30"), ("blur1", "blur2", "blur3")):
        errors = [np.abs(pixels(rocket, name) - clean).mean() for name in names]
        assert errors == sorted(errors)
        assert errors[0] > 0


def test_noise_is_normal_and_the_picture_s_own(tmp_path):
    Image.new("RGB", (300, 200), (128, 128, 128)).save(tmp_path / "grey.png")
    drawn = pixels(tmp_path / "grey.png", "noise5").astype(float) - 128
    assert abs(drawn.mean()) < 0.15
    assert drawn.std() == pytest.approx(0.05 * 255, rel=0.02)
    within = math.erf(12.5 / 12.75 / math.sqrt(2))  # samples are whole numbers: up to 12 is up to 12.5
    assert (np.abs(drawn) < 12.75).mean() == pytest.approx(within, abs=0.01)
    assert abs(np.corrcoef(drawn[..., 0].ravel(), drawn[..., 1].ravel())[0, 1]) < 0.02
    other = pixels(tmp_path / "grey.png", "noise5", key="1").astype(float) - 128
    assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.02


def test_noise_bits_are_fixed():
    """They come from Philox bytes and integer sums alone, so no NumPy version may change them."""
    black = Image.new("RGB", (8, 4))
    damaged = np.asarray(corrupt(black, CORRUPTIONS["noise5"], policy=POLICY, key="abc"))
    assert hashlib.sha256(damaged.tobytes()).hexdigest()[:16] == "e281b7a9acd17a65"


def test_both_branches_see_the_damage(rocket):
    clean = preprocess(rocket, POLICY)
    blurred = preprocess(corrupt(rocket, CORRUPTIONS["blur3"], policy=POLICY, key=""), POLICY)

    def roughness(view):
        return np.abs(np.diff(view.astype(float), axis=1)).mean()

    assert roughness(blurred.image) < 0.9 * roughness(clean.image)
    assert roughness(blurred.crop) < 0.6 * roughness(clean.crop)


@pytest.mark.parametrize("exif", ["apply", "official", "ignore"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_survives(exif, orientation, tmp_path):
    """A half-size copy is turned exactly as the original, in each branch."""
    shade = np.zeros((64, 96, 3), np.uint8)
    shade[:16, :24] = 255
    image = Image.fromarray(shade)
    tags = image.getexif()
    tags[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=tags)
    policy = Preprocessing(exif=exif)
    whole = preprocess(tmp_path / "turned.png", policy, image_size=64, crop_size=64)
    halved = corrupt(tmp_path / "turned.png", CORRUPTIONS["half"], policy=policy, key="")
    small = preprocess(halved, policy, image_size=64, crop_size=32)
    assert np.abs(whole.image.astype(int) - small.image).mean() < 8
    large = np.asarray(Image.fromarray(whole.crop).resize((32, 32)))
    assert np.abs(large.astype(int) - small.crop).mean() < 8


@pytest.mark.parametrize("alpha", ["drop", "white"])
def test_alpha_is_treated_as_the_bundle_says(alpha, tmp_path):
    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    mean = pixels(tmp_path / "clear.png", "half", policy=Preprocessing(alpha=alpha)).mean()
    assert mean == (255 if alpha == "white" else 20)


def test_profile_is_applied_once(tmp_path):
    """The result carries no profile: preprocessing would convert its samples a second time."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / "tagged.png", icc_profile=srgb)
    assert "icc_profile" in Image.open(tmp_path / "tagged.png").info
    result = corrupt(tmp_path / "tagged.png", CORRUPTIONS["half"], policy=Preprocessing(icc="srgb"), key="")
    assert "icc_profile" not in result.info


def test_tiny_and_large_sides(tmp_path):
    for size in ((1, 1), (1, 50), (3, 2)):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "small.png")
        for name in CORRUPTIONS:
            assert pixels(tmp_path / "small.png", name).size


def test_bad_files_are_sentences(tmp_path, rocket):
    (tmp_path / "cut.jpg").write_bytes(rocket.read_bytes()[:3000])
    with pytest.raises(ImageError, match="truncated"):
        pixels(tmp_path / "cut.jpg", "jpeg75")
    with pytest.raises(ImageError, match="no such file"):
        pixels(tmp_path / "none.jpg", "half")


def test_jpeg_is_what_it_says(rocket):
    """The file in between has 4:2:0 chroma and the quality's quantisation."""
    buffer = io.BytesIO()
    Image.open(rocket).save(buffer, "JPEG", quality=75, subsampling="4:2:0")
    assert np.array_equal(pixels(rocket, "jpeg75"), np.asarray(Image.open(buffer)))


def test_choice():
    assert [c.name for c in choose("all")] == list(CORRUPTIONS)
    assert [c.name for c in choose("blur, JPEG75,half,blur1")] == ["jpeg75", "blur1", "blur2", "blur3", "half"]
    with refused("choose from all, jpeg, blur", about="'fog'"):
        choose("jpeg,fog")
