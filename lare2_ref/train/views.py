"""What a training step sees of a picture: the runtime's own view, or a random one, the same for both branches."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lare2_rt.errors import ImageError
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import Pixels, preprocess
from lare2_rt.tools.evaluation.corruptions import Corruption, blur, corrupt, jpeg, noise
from lare2_rt.tools.evaluation.items import Item

from .options import TrainOptions
from .randomness import generator


def read_checked(item: Item) -> bytes:
    """Return a file's content; raises ImageError when it is not the file that was indexed.

    LaRE is found by content: with another picture under the same name, pixels and map would not belong together.
    """
    try:
        content = Path(item.path).read_bytes()
    except OSError as error:
        raise ImageError(f"{item.path} cannot be read ({error.strerror})", remedy="check the index's root") from error
    if hashlib.sha256(content).hexdigest() != item.sha256:
        raise ImageError(f"{item.path} is another file than when the index was written", remedy="write the index again")
    return content


def training_view(
    item: Item, options: TrainOptions, epoch: int, *, policy: Preprocessing, image_size: int, crop_size: int
) -> Pixels:
    """Return both branches' pixels of one image in one epoch; the same arguments give the same pixels."""
    content = read_checked(item)
    if options.fixed_view:
        return preprocess(content, policy, image_size=image_size, crop_size=crop_size)
    random = generator(options.seed, "view", epoch, item.sha256)

    def change(image: Image.Image, key: bytes) -> Image.Image:
        if options.augment == "strong":
            image = strong(image, random, key)
        return cut(image, random, crop_size) if options.crop == "random" else image

    view = corrupt(content, Corruption("view", "view", "a training view", change), policy=policy, key=item.sha256)
    pixels = preprocess(view, policy, image_size=image_size, crop_size=crop_size)
    if options.crop == "official":
        window = preprocess(cut(view, random, crop_size), policy, image_size=image_size, crop_size=crop_size)
        return Pixels(pixels.image, window.crop)
    return pixels


def cut(image: Image.Image, random: np.random.Generator, size: int) -> Image.Image:
    """Return the largest part of the picture whose centre window of ``size`` pixels is a random one of the picture.

    The runtime takes the map of a whole picture with its centre window; of this part it would take this window.
    """
    box = []
    for length in image.size:
        start = int(random.integers(length - size + 1)) if length > size else 0
        margin = min(start, length - size - start) if length > size else 0
        box.append((start - margin, start + size + margin) if length > size else (0, length))
    (left, right), (upper, lower) = box
    return image.crop((left, upper, right, lower))


def strong(image: Image.Image, random: np.random.Generator, key: bytes) -> Image.Image:
    """The official strong augmentation, on the whole picture: one of four damages, a quarter turn, a flip.

    Source: the training pipeline of the official ``test.py`` (method.md 3.2): probabilities 0.5, 0.33, 0.33.
    """
    if random.random() < 0.5:
        kind = int(random.integers(4))
        if kind == 0:
            image = jpeg(image, int(random.integers(50, 96)))
        elif kind == 1:
            kernel = int(random.choice((3, 5, 7)))
            image = blur(image, 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8)  # OpenCV's width for a kernel size
        elif kind == 2:
            sigma = math.sqrt(random.uniform(3, 10))
            image = noise(image, sigma, key + random.bytes(16))
        else:
            image = image.convert("L").convert("RGB")
    if random.random() < 0.33:
        turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        turn = turns[int(random.integers(4))]
        image = image if turn is None else image.transpose(turn)
    if random.random() < 0.33:
        axis = int(random.integers(3))
        image = ImageOps.mirror(image) if axis != 0 else image
        image = ImageOps.flip(image) if axis != 1 else image
    return image
