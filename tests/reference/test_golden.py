"""The reference against outputs of the official code."""

import numpy as np
import pytest
import torch

from lare2_ref.clip_backbone import ClipBackbone, ClipConfig, build_visual
from lare2_ref.egre import Egre, EgreConfig, official_key
from lare2_ref.lare import LareExtractor
from lare2_rt.engines.difference import difference
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess
from tests.helpers.tiny import (
    GOLDEN,
    golden_noise,
    golden_state,
    seeded,
    seeded_input,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
)

LIMIT = 1e-5  # relative L2, float32
UNUSED = ("conv_align.", "relative_importance_mapping.")


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "official_head.npz")


@pytest.fixture(scope="module")
@torch.no_grad()
def features():
    visual = seeded(build_visual(ClipConfig()), lambda key: f"clip_model.visual.{key}")
    return ClipBackbone(visual).features(torch.from_numpy(seeded_input("image", (2, 3, 224, 224))))


def head(name):
    return seeded(Egre(EgreConfig(head=name)), lambda key: official_key(name, key))


def lare_input():
    return torch.from_numpy(np.abs(seeded_input("lare", (2, 4, 32, 32))) * np.float32(0.3))


def test_clip_features(features, golden):
    assert difference(features.embedding, golden["image_features"]).relative_l2 <= LIMIT
    assert difference(features.layer3.mean((2, 3)), golden["layer3_mean"]).relative_l2 <= LIMIT


@pytest.mark.parametrize("name", ["v6", "v7"])
@torch.no_grad()
def test_logits(name, features, golden):
    output = head(name)(lare_input(), *features)
    assert difference(output.logits, golden[f"{name}_logits"]).relative_l2 <= LIMIT


@torch.no_grad()
def test_esr_and_ecr_features(features, golden):
    output = head("v6")(lare_input(), *features)
    assert difference(output.spatial, golden["v6_spatial"]).relative_l2 <= LIMIT
    assert difference(output.channel, golden["v6_channel"]).relative_l2 <= LIMIT


@pytest.mark.parametrize("name", ["v6", "v7"])
@torch.no_grad()
def test_batch_of_one(name, features):
    """The official code drops the batch axis of a single image; ours gives the row that a pair gives."""
    both = head(name)(lare_input(), *features)
    alone = head(name)(lare_input()[:1], features.embedding[:1], features.layer3[:1])
    assert alone.logits.shape == (1, 2)
    assert alone.attention.shape == (1, 8, 196)
    torch.testing.assert_close(alone.logits, both.logits[:1])


@pytest.mark.parametrize("name", ["v6", "v7"])
@torch.no_grad()
def test_attention_is_a_share(name, features):
    attention = head(name)(lare_input(), *features).attention
    assert (attention >= 0).all()
    assert (attention.sum(dim=2) < 1).all()  # the rest is the mean token's


@pytest.mark.parametrize("name", ["v6", "v7"])
def test_keys_are_exactly_the_official_ones(name):
    """Every official key but the text tower and the two unused layers has its place in ours, with the same shape."""
    lines = (GOLDEN / f"official_head_{name}_keys.txt").read_text().splitlines()
    official = dict(line.split(" ", 1) for line in lines)
    official = {k: v for k, v in official.items() if not any(part in k for part in UNUSED)}
    ours = {official_key(name, k): str(list(v.shape)) for k, v in Egre(EgreConfig(head=name)).state_dict().items()}
    visual = build_visual(ClipConfig()).state_dict()
    ours |= {f"clip_model.visual.{k}": str(list(v.shape)) for k, v in visual.items()}
    assert ours == official


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_lare_map(prediction_type):
    golden = np.load(GOLDEN / f"official_lare_{prediction_type}.npz")
    prompt = torch.from_numpy(golden["prompt_embeds"])
    extractor = LareExtractor(tiny_vae(), tiny_unet(), tiny_scheduler(prediction_type), prompt_embeds=prompt)
    posterior, ensemble = map(torch.from_numpy, golden_noise())
    image = torch.from_numpy(preprocess(golden["image"], Preprocessing()).image.copy())[None]
    output = extractor(image, posterior, ensemble)
    assert output.noise_prediction.shape == (1, 4, 4, 32, 32)
    assert difference(output.lare[0], golden["lare"]).relative_l2 <= LIMIT


@torch.no_grad()
def test_lare_rows_do_not_mix():
    """Two images in one call give what each gives alone: repeat and reshape keep images and draws apart."""
    prompt = torch.from_numpy(np.load(GOLDEN / "official_lare_epsilon.npz")["prompt_embeds"])
    extractor = LareExtractor(tiny_vae(), tiny_unet(), tiny_scheduler("epsilon"), prompt_embeds=prompt, timestep=50)
    latents = torch.from_numpy(seeded_input("latents", (2, 4, 32, 32)))
    noise = torch.from_numpy(seeded_input("noise", (3, 4, 32, 32)))
    both = extractor.error(latents, noise)
    for row in range(2):
        alone = extractor.error(latents[row : row + 1], noise)
        assert difference(both.lare[row], alone.lare[0]).relative_l2 <= LIMIT


def test_timestep_and_prediction_type_are_checked():
    prompt = torch.zeros(1, 77, 32)
    with pytest.raises(ValueError, match="timestep must lie between 0 and 999"):
        LareExtractor(tiny_vae(), tiny_unet(), tiny_scheduler("epsilon"), prompt_embeds=prompt, timestep=1000)
    with pytest.raises(ValueError, match="prediction type 'sample' has no LaRE"):
        LareExtractor(tiny_vae(), tiny_unet(), tiny_scheduler("sample"), prompt_embeds=prompt)


def test_golden_weights_are_not_degenerate():
    """A rebuilt weight that came out constant would make every golden comparison meaningless."""
    for key, value in golden_state(tiny_unet()).items():
        if value.ndim > 1:
            assert value.std() > 0, key
