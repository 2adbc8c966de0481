"""What is folded computes the same as what it replaces, and nothing else is left out."""

import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel

from lare2_export.components.clip_backbone import SingleQueryPool
from lare2_export.components.egre import pooling_matrix
from lare2_export.graph.fold import fold_batch_norms, fold_unet
from lare2_export.graph.prepare import prepare
from lare2_ref.checkpoints import SourceError
from lare2_ref.clip_backbone import ClipBackbone, ClipConfig, build_visual
from lare2_ref.mini import seed_weights
from lare2_rt.engines.difference import difference
from tests.helpers.processes import environment
from tests.helpers.tiny import seeded_input, tiny_unet, tiny_vae

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def prompt(tokens=77, width=32):
    return torch.from_numpy(seeded_input("prompt", (1, tokens, width)))


@torch.no_grad()
def test_folded_unet_predicts_the_same():
    noisy = torch.from_numpy(seeded_input("noisy", (3, 4, 32, 32)))
    whole = tiny_unet()
    expected = whole(noisy, 200, encoder_hidden_states=prompt().expand(3, -1, -1)).sample
    folded = tiny_unet()
    fold_unet(folded, timestep=200, prompt_embeds=prompt())
    prepare(folded)
    actual = folded(noisy, 0, encoder_hidden_states=None).sample
    assert difference(actual, expected).relative_l2 <= 3e-6


@torch.no_grad()
def test_fold_depends_on_timestep_and_prompt():
    """A fold that lost the time or the prompt would still run; it must not give the same prediction."""
    noisy = torch.from_numpy(seeded_input("noisy", (1, 4, 32, 32)))
    results = []
    for timestep, scale in ((200, 1), (700, 1), (200, 2)):
        unet = tiny_unet()
        fold_unet(unet, timestep=timestep, prompt_embeds=prompt() * scale)
        results.append(unet(noisy, 0, encoder_hidden_states=None).sample)
    assert difference(results[1], results[0]).relative_l2 > 1e-3
    assert difference(results[2], results[0]).relative_l2 > 1e-3


def test_element_count_of_sd15():
    """SD 1.5 in millions: 859.5 − 19.2 (cross-attention K/V weights) − 27.9 (time path) + 1.9 (K/V constants)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        sizes = {name: parameter.numel() for name, parameter in unet.named_parameters()}
        report = fold_unet(unet, timestep=200, prompt_embeds=torch.zeros(1, 77, 768))
    key_value = sum(size for name, size in sizes.items() if ".attn2.to_k" in name or ".attn2.to_v" in name)
    time = sum(size for name, size in sizes.items() if "time_emb" in name)
    assert report.before == sum(sizes.values()) == 859_520_964
    assert (key_value, time) == (19_169_280, 27_875_520)
    assert report.removed == key_value + time
    assert report.constants == 2 * 77 * (5 * 320 + 5 * 640 + 6 * 1280) == 1_921_920
    assert report.after == report.before - report.removed + report.constants
    assert sum(tensor.numel() for tensor in unet.state_dict().values()) == report.after


FOLD_ELSEWHERE = """
import hashlib
from lare2_export.graph.fold import fold_unet
from lare2_ref.sources import default_model_folder, open_model_folder
sources = open_model_folder(default_model_folder())
unet, prompt = sources.unet(), sources.prompt_embeds("a photo")
fold_unet(unet, timestep=200, prompt_embeds=prompt)
digest = hashlib.sha256(prompt.numpy().tobytes())
for value in unet.state_dict().values():
    digest.update(value.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_other_processors_fold_to_the_same_bits():
    """With the kernels that torch and its matrix library take where there are no wide registers."""
    digests = []
    for variables in ({}, {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}):
        command = [sys.executable, "-c", FOLD_ELSEWHERE]
        run = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=True)
        digests.append(run.stdout)
    assert digests[0] == digests[1] != ""


def test_unknown_conditioning_is_refused():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15, class_embed_type="timestep")
    with pytest.raises(SourceError, match="class_embed_type"):
        fold_unet(unet, timestep=200, prompt_embeds=torch.zeros(1, 77, 768))


@torch.no_grad()
def test_prepared_vae_encodes_the_same():
    pixels = torch.from_numpy(seeded_input("pixels", (1, 3, 64, 64)))
    whole, prepared = tiny_vae(), tiny_vae()
    prepare(prepared)
    assert difference(prepared.encoder(pixels), whole.encoder(pixels)).relative_l2 <= 3e-6


@torch.no_grad()
def test_clip_folding_and_single_query_pool():
    config = ClipConfig(layers=(1, 1, 2, 1), width=8, embedding=32, image_size=64)
    backbone = ClipBackbone(build_visual(config)).eval()
    seed_weights(backbone.visual, "clip", 1)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    crop = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = backbone(crop)
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())
    assert fold_batch_norms(backbone.visual) == norms
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())
    backbone.visual.attnpool = SingleQueryPool(backbone.visual.attnpool)
    actual = backbone(crop)
    assert difference(actual.embedding, expected.embedding).relative_l2 <= 3e-6
    assert difference(actual.layer3, expected.layer3).relative_l2 <= 3e-6


@pytest.mark.parametrize(("size", "grid"), [(32, 14), (64, 14), (14, 14), (5, 3)])
def test_pooling_matrix_is_adaptive_pooling(size, grid):
    error = torch.from_numpy(seeded_input("error", (2, 4, size, size)))
    matrix = pooling_matrix(size, grid)
    torch.testing.assert_close(matrix @ error @ matrix.T, torch.nn.functional.adaptive_avg_pool2d(error, grid))
