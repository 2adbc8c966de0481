"""Stable Diffusion as a folder of diffusers, on the small model that ships with the project."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lare2_ref.checkpoints import SourceError
from lare2_ref.sd_source import find_stable_diffusion
from lare2_ref.sources import default_model_folder
from lare2_rt.host.integrity import HashCache


@pytest.fixture
def model(tmp_path):
    """A copy of mini that a test may damage."""
    return shutil.copytree(default_model_folder(), tmp_path / "model")


def test_renamed_key_and_truncated_file_of_stable_diffusion(model):
    weights = model / "unet/diffusion_pytorch_model.fp16.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"unet cannot be loaded .*download it again"):
        find_stable_diffusion(str(model)).unet()
    weights.write_bytes(whole)
    state = load_file(weights)
    state["conv_inn.weight"] = state.pop("conv_in.weight")
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"conv_in"):
        find_stable_diffusion(str(model)).unet()


def test_text_encoder_that_lacks_a_weight_is_refused(model):
    """transformers fills the gap with random numbers and a warning."""
    weights = model / "text_encoder/model.fp16.safetensors"
    state = load_file(weights)
    lost = next(key for key in state if key.endswith("q_proj.weight"))
    save_file({key: value for key, value in state.items() if key != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"text_encoder has missing keys: .*q_proj\.weight"):
        find_stable_diffusion(str(model)).prompt_embeds("a photo")


def test_tokenizer_counts_as_part_of_the_text_encoder(model):
    def digest():
        return find_stable_diffusion(str(model)).hashes(HashCache())["text_encoder"]

    before = digest()
    (model / "tokenizer/merges.txt").write_text("#version: 0.2\na b</w>\n")
    assert digest() != before


def test_prompts_are_encoded_as_the_official_script_does(model):
    """Padded and cut to 77 tokens, no attention mask, last hidden state; another prompt gives another embedding."""
    source = find_stable_diffusion(str(model))
    embeds = source.prompt_embeds("a photo")
    assert embeds.shape == (1, 77, 32)
    assert not torch.equal(embeds, source.prompt_embeds("a photo of a cat"))
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(model / "text_encoder", variant="fp16", dtype=torch.float32).eval()
    vocabulary = json.loads((model / "tokenizer/vocab.json").read_text())
    words = ["<|startoftext|>", "a</w>", *"phot", "o</w>", "<|endoftext|>"]
    ids = [vocabulary[word] for word in words]
    with torch.no_grad():
        expected = encoder(torch.tensor([ids + [vocabulary["<|endoftext|>"]] * (77 - len(ids))]))[0]
    torch.testing.assert_close(embeds, expected)
    assert source.prompt_embeds("x " * 200).shape == (1, 77, 32)


def test_precision_of_the_file_does_not_matter(model, tmp_path):
    half = find_stable_diffusion(str(model))
    half.vae().save_pretrained(tmp_path / "full/vae")
    full = find_stable_diffusion(str(tmp_path / "full")).vae()
    assert full.dtype == torch.float32
    assert all(torch.equal(value, full.state_dict()[key]) for key, value in half.vae().state_dict().items())


def test_vae_without_decoder_encodes_the_same(model):
    """LaRE never decodes; a folder may leave the decoder out, but nothing of the encoder."""
    weights = model / "vae/diffusion_pytorch_model.fp16.safetensors"
    whole = find_stable_diffusion(str(model)).vae()
    state = load_file(weights)
    kept = {key: value for key, value in state.items() if not key.startswith(("decoder.", "post_quant_conv."))}
    save_file(kept, weights, metadata={"format": "pt"})
    vae = find_stable_diffusion(str(model)).vae()
    assert not any(parameter.is_meta for parameter in vae.parameters())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(vae.encode(image).latent_dist.mean, whole.encode(image).latent_dist.mean)
    kept.pop("encoder.conv_in.bias")
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"vae has missing keys: encoder\.conv_in\.bias"):
        find_stable_diffusion(str(model)).vae()
