"""Preprocessing against the originals: OpenCV's borders, albumentations' windows, Pillow's squash, EXIF and modes."""

import io
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, ImageOps

from lare2_rt import ImageError
from lare2_rt.pixels import decode as decoder
from lare2_rt.pixels.decode import open_image, source_name
from lare2_rt.pixels.limits import Limits
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import centre_crop, preprocess, reflect101, squash

# numpy divides by zero with a warning only.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

ORIENTATION = 0x0112
BORDERS = {"reflect101": cv2.BORDER_REFLECT_101, "zero": cv2.BORDER_CONSTANT}
SIZES = [(1, 1), (1, 500), (500, 1), (2, 3), (113, 113), (128, 128), (113, 301), (223, 224), (224, 225), (225, 223)]
SIZES += [(224, 224), (226, 449), (427, 640)]


def noise(*shape):
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, form="PNG", **options):
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation, array, form="PNG", **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(array, form, exif=exif, **options)


def opencv(content):
    """What the official script's CLIP branch reads: 8 bits, turned by EXIF, without alpha."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def albumentations_crop(rgb, border, size=224):
    """PadIfNeeded(size, size) and CenterCrop(size, size), written out; equal to albumentations 1.3.1 on these sizes."""
    height, width = rgb.shape[:2]
    rows, columns = max(size - height, 0), max(size - width, 0)
    top, left = rows // 2, columns // 2
    padded = cv2.copyMakeBorder(rgb, top, rows - top, left, columns - left, border, value=(0, 0, 0))
    y, x = (padded.shape[0] - size) // 2, (padded.shape[1] - size) // 2
    return padded[y : y + size, x : x + size]


def decoded(content, **policy):
    """The picture as the CLIP branch sees it, whole: with an odd size no crop hides a shift."""
    with Image.open(io.BytesIO(content)) as image:
        size = max(image.size)
    return preprocess(content, Preprocessing(**policy), crop_size=size).crop


@pytest.mark.parametrize("padding", BORDERS)
@pytest.mark.parametrize("size", SIZES)
def test_crop_is_albumentations(size, padding):
    rgb = noise(*size, 3)
    ours = preprocess(rgb, Preprocessing(padding=padding)).crop
    assert np.array_equal(ours, albumentations_crop(rgb, BORDERS[padding]))


@pytest.mark.parametrize(("size", "first"), [((128, 224), 48), ((113, 224), 55), ((223, 224), 0)])
def test_odd_border_pixel_comes_last(size, first):
    crop = centre_crop(np.full((*size, 3), 7, np.uint8), 224, "zero")
    inside = np.flatnonzero(crop[:, 0, 0])
    assert inside[0] == first
    assert len(inside) == size[0]


@pytest.mark.parametrize("padding", BORDERS)
@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 600), width=st.integers(1, 600), size=st.sampled_from([1, 2, 31, 224, 448]))
def test_crop_of_any_size(padding, height, width, size):
    rgb = noise(height, width, 3)
    crop = centre_crop(rgb, size, padding)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop, albumentations_crop(rgb, BORDERS[padding], size))


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 300), before=st.integers(0, 2000), after=st.integers(0, 2000))
def test_reflection_is_opencv(length, before, after):
    row = np.arange(length, dtype=np.int32)[None]
    expected = cv2.copyMakeBorder(row, 0, 0, before, after, cv2.BORDER_REFLECT_101)[0]
    assert np.array_equal(reflect101(np.arange(-before, length + after), length), expected)


@settings(max_examples=60, deadline=None)
@given(rgb=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_both_branches_of_any_picture(rgb):
    pixels = preprocess(rgb, Preprocessing())
    assert pixels.crop.shape == (224, 224, 3)
    assert pixels.image.shape == (256, 256, 3)
    assert pixels.crop.dtype == pixels.image.dtype == np.uint8
    assert set(np.unique(pixels.crop)) <= set(np.unique(rgb))  # padding invents no value


def test_twelve_megapixels():
    rgb = noise(3024, 4032, 3)
    pixels = preprocess(rgb, Preprocessing())
    assert np.array_equal(pixels.crop, rgb[1400:1624, 1904:2128])
    assert np.array_equal(pixels.image, np.asarray(Image.fromarray(rgb).resize((256, 256))))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (255, 257), (256, 256), (640, 427)])
def test_squash_is_pillow_default(size):
    """The official script names no filter: Pillow's default for RGB, which antialiases."""
    image = Image.fromarray(noise(*size, 3))
    ours = squash(image, 256)
    assert np.array_equal(ours, np.asarray(image.resize((256, 256))))
    if min(size) > 256:
        assert not np.array_equal(ours, np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)))
        # Without antialiasing neighbouring samples of noise stay noise.
        assert ours.std() < cv2.resize(np.asarray(image), (256, 256), interpolation=cv2.INTER_CUBIC).std() - 5


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, form):
    """``official``: Pillow leaves the picture for LaRE as stored and OpenCV turns it for CLIP, except TIFF, which
    Pillow turns too."""
    content = turned(orientation, noise(31, 47, 3), form, **({"lossless": True} if form == "WEBP" else {}))
    stored = opencv_as_stored(content)
    upright = opencv(content)
    assert (orientation == 1) == (stored.shape == upright.shape and np.array_equal(stored, upright))
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), upright)
        official = np.asarray(image.convert("RGB"))  # as extract_lare.py reads it
    assert np.array_equal(official, upright if form == "TIFF" else stored)
    for exif, lare, clip in (("apply", upright, upright), ("official", official, upright), ("ignore", stored, stored)):
        pixels = preprocess(content, Preprocessing(exif=exif))
        assert np.array_equal(pixels.crop, albumentations_crop(clip, cv2.BORDER_REFLECT_101)), exif
        assert np.array_equal(pixels.image, np.asarray(Image.fromarray(lare).resize((256, 256)))), exif


def opencv_as_stored(content):
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)[..., ::-1]
    if content[:2] not in (b"II", b"MM"):
        return image
    # OpenCV cannot be kept from turning a TIFF, so undo it.
    with Image.open(io.BytesIO(content)) as tiff:
        back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[tiff.tag_v2.get(ORIENTATION, 1)]
    return opencv(turned(back, image))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_out_of_range_is_upright(orientation):
    rgb = noise(31, 47, 3)
    pixels = preprocess(turned(orientation, rgb), Preprocessing())
    assert np.array_equal(pixels.crop, albumentations_crop(rgb, cv2.BORDER_REFLECT_101))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("damage", ["cut", "words", "zeros", "offset"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_leaves_the_picture_alone(form, damage):
    exif = Image.Exif()
    exif[0x010F] = "a maker's name, stored outside its entry"
    whole = exif.tobytes()
    junk = {
        "cut": whole[:17],
        "words": b"Exif\0\0not a TIFF header at all",
        "zeros": bytes(40),
        "offset": whole[:-44].replace(b"\x01\x0f\x00\x02", b"\x01\x0f\x00\xff") + bytes([255]) * 44,
    }[damage]
    array = noise(31, 47, 3)
    plain, damaged = encoded(array, form), encoded(array, form, exif=junk)
    assert len(damaged) > len(plain)
    for policy in ("apply", "official", "ignore"):
        expected, pixels = (preprocess(content, Preprocessing(exif=policy)) for content in (plain, damaged))
        assert np.array_equal(pixels.crop, expected.crop)
        assert np.array_equal(pixels.image, expected.image)


def palette(transparency):
    image = Image.fromarray(noise(31, 47)).convert("L")
    image = Image.fromarray(np.asarray(image) % 4).convert("L")
    indexed = Image.frombytes("P", image.size, image.tobytes())
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 90, 200])
    return indexed, {"transparency": transparency}


def over_white(rgb, alpha):
    share = alpha[..., None].astype(np.float64) / 255
    return rgb * share + 255 * (1 - share)


def modes():
    """Lists (content, colours, alpha) of every kind of pixels."""
    grey, rgb, alpha = noise(31, 47), noise(31, 47, 3), noise(31, 47, 1)[..., 0]
    flat = np.repeat(grey[..., None], 3, 2)
    indexed, by_byte = palette(b"\x00\x80\xff\xff")
    colours = np.asarray(indexed.convert("RGB"))
    entry = np.asarray(indexed)
    yield pytest.param(encoded(grey), flat, None, id="grey")
    yield pytest.param(encoded(np.dstack([grey, alpha])), flat, alpha, id="grey and alpha")
    yield pytest.param(encoded(rgb), rgb, None, id="RGB")
    yield pytest.param(encoded(np.dstack([rgb, alpha])), rgb, alpha, id="RGBA")
    yield pytest.param(encoded(indexed), colours, None, id="palette")
    weights = np.uint8([0, 128, 255, 255])
    yield pytest.param(encoded(indexed, **by_byte), colours, weights[entry], id="palette with alpha")
    clear = np.where(entry == 1, 0, 255).astype(np.uint8)
    yield pytest.param(encoded(indexed, transparency=1), colours, clear, id="palette with one clear colour")
    bits = np.where(grey > 127, 255, 0).astype(np.uint8)
    one_bit = Image.fromarray(bits).convert("1")
    yield pytest.param(encoded(one_bit), np.repeat(bits[..., None], 3, 2), None, id="1 bit")
    deep = np.random.default_rng(5).integers(0, 65536, (31, 47), dtype=np.uint16)
    upper = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2)
    for form in ("PNG", "TIFF"):
        yield pytest.param(encoded(deep, form), upper, None, id=f"16 bit {form}")
    big_endian = Image.frombytes("I;16B", (47, 31), deep.astype(">u2").tobytes())
    yield pytest.param(encoded(big_endian, "TIFF"), upper, None, id="16 bit big-endian")


@pytest.mark.parametrize(("content", "rgb", "alpha"), list(modes()))
def test_modes(content, rgb, alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would stand on the user's standard error
        dropped = decoded(content, alpha="drop", padding="zero")
        white = decoded(content, alpha="white", padding="zero")
    window = albumentations_crop(rgb, cv2.BORDER_CONSTANT, 47)
    assert np.array_equal(dropped, window)
    # OpenCV, the official reader of this branch, drops alpha and the lower byte too.
    assert np.array_equal(dropped, albumentations_crop(opencv(content), cv2.BORDER_CONSTANT, 47))
    if alpha is None:
        assert np.array_equal(white, dropped)
    else:
        expected = albumentations_crop(over_white(rgb, alpha), cv2.BORDER_CONSTANT, 47)
        assert np.abs(white - expected).max() <= 1
        assert np.abs(expected - window).max() > 100


def test_cmyk_by_the_plain_formula():
    """Pillow's conversion without a profile: each ink takes its share of what black leaves."""
    inks = noise(31, 47, 4)
    content = encoded(Image.fromarray(inks, "CMYK"), "TIFF")
    cyan_magenta_yellow, black = inks[..., :3].astype(np.float64), inks[..., 3:].astype(np.float64)
    expected = (255 - cyan_magenta_yellow) * (255 - black) / 255
    window = albumentations_crop(expected, cv2.BORDER_CONSTANT, 47)
    assert np.abs(decoded(content, padding="zero") - window).max() <= 1
    # A JPEG of Adobe's kind stores the inks inverted.
    stored = Image.fromarray(np.full((47, 47, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    red = decoded(encoded(stored, "JPEG", quality=95))
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 6


@pytest.fixture(scope="module")
def swapped():
    """An sRGB profile whose red and green primaries changed places, so that converting swaps two channels."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert profile.count(b"rXYZ") == profile.count(b"gXYZ") == 1
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_icc_profile(swapped, mode):
    image = Image.fromarray(noise(31, 47, 3))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(noise(31, 47)))
    elif mode == "P":
        image, _ = palette(None)
    rgb = np.asarray(image.convert("RGB"))
    content = encoded(image, icc_profile=swapped)
    window = albumentations_crop(rgb, cv2.BORDER_CONSTANT, 47).astype(int)
    assert np.array_equal(decoded(content, icc="ignore", padding="zero"), window)
    converted = decoded(content, icc="srgb", padding="zero")
    assert np.abs(converted - window[..., [1, 0, 2]]).max() <= 2
    if mode == "RGBA":
        mixed = over_white(rgb[..., [1, 0, 2]], np.asarray(image)[..., 3])
        white = decoded(content, icc="srgb", alpha="white", padding="zero")
        assert np.abs(white - albumentations_crop(mixed, cv2.BORDER_CONSTANT, 47)).max() <= 3


@pytest.mark.parametrize("kind", ["none", "broken", "of another colour space"])
def test_icc_profile_that_says_nothing(swapped, kind):
    image = noise(31, 47) if kind == "of another colour space" else noise(31, 47, 3)
    profile = {"none": None, "broken": swapped[:200], "of another colour space": swapped}[kind]
    content = encoded(image, icc_profile=profile)
    assert np.array_equal(decoded(content, icc="srgb"), decoded(content, icc="ignore"))


def test_unusual_pixels_are_refused():
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    with pytest.raises(ImageError, match="floating-point pixels"):
        preprocess(encoded(floats, "TIFF"), Preprocessing())
    with pytest.raises(ImageError, match="its La pixels cannot become RGB"):
        preprocess(Image.new("La", (4, 4)), Preprocessing())


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_many(form):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert (preprocess(content, Preprocessing()).crop == (255, 0, 0)).all()


def test_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(decoder, "MAX_SIDE", 60)
    content = encoded(noise(10, 10, 3))
    limits = Limits(max_pixels=100, max_bytes=len(content))
    (tmp_path / "photo.png").write_bytes(content)
    assert open_image(tmp_path / "photo.png", limits=limits).size == (10, 10)
    (tmp_path / "photo.png").write_bytes(content + b"\0")
    for source in (tmp_path / "photo.png", content + b"\0", io.BytesIO(content + b"\0")):
        with pytest.raises(ImageError, match=f"the file has more than {len(content)} bytes"):
            open_image(source, limits=limits)
    limits = Limits(max_pixels=100)
    with pytest.raises(ImageError, match="101×1 is larger than 100 pixels"):
        open_image(encoded(noise(1, 101, 3)), limits=limits)
    with pytest.raises(ImageError, match="1×61 has a side of more than 60"):
        open_image(encoded(noise(61, 1, 3)), limits=limits)
    assert open_image(encoded(noise(60, 1, 3)), limits=limits).size == (1, 60)


def test_no_memory_is_a_sentence(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("lare2_rt.pixels.preprocess.squash", full)
    with pytest.raises(ImageError, match="too little memory for its 4×3 pixels"):
        preprocess(noise(3, 4, 3), Preprocessing())


def test_names(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(noise(4, 4, 3)))
    assert source_name(path) == str(path)
    with Image.open(path) as image, open(bytes(path), "rb") as by_bytes, path.open("rb") as by_text:  # noqa: PTH123
        assert source_name(image) == source_name(by_bytes) == source_name(by_text) == str(path)
    assert source_name(io.BytesIO()) == "<stream>"
    assert source_name(b"") == "<bytes>"
    assert source_name(noise(4, 4, 3)) == "<array>"
    assert source_name(Image.new("RGB", (1, 1))) == "<image>"


def test_no_memory_while_decoding_or_turning_is_never_another_picture(monkeypatch):
    """A picture that could not be turned must not be scored as it lies."""

    def full(*_, **__):
        raise MemoryError

    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (4, 3)).save(stream, "PNG", exif=exif)
    with monkeypatch.context() as patch:
        patch.setattr("lare2_rt.pixels.decode.ImageOps.exif_transpose", full)
        with pytest.raises(ImageError, match="too little memory for its 4×3 pixels"):
            preprocess(stream.getvalue(), Preprocessing())
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", full)
    with pytest.raises(ImageError, match="too little memory to decode it"):
        preprocess(stream.getvalue(), Preprocessing())
