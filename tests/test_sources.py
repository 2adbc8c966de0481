"""Weights in every form that users have: loaded to the same numbers, or refused with the file and key named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lare2_export.options import BuildOptions
from lare2_export.plan import plan_geometry
from lare2_export.staging import BuildError
from lare2_ref import checkpoints
from lare2_ref.checkpoints import SourceError
from lare2_ref.clip_backbone import ClipConfig, build_visual
from lare2_ref.clip_source import ClipCheckpoint, find_clip
from lare2_ref.egre import Egre, EgreConfig, official_key
from lare2_ref.head_source import HeadCheckpoint, find_head
from lare2_ref.mini import seed_weights
from lare2_ref.sd_source import find_stable_diffusion
from lare2_ref.sources import OFFICIAL_NOTE, combine, default_model_folder, open_model_folder
from lare2_ref.synthetic import synthetic
from lare2_rt.integrity import HashCache

SMALL_CLIP = ClipConfig(layers=(1, 1, 2, 1), width=8, embedding=48, image_size=64)


def small_head(name):
    return EgreConfig(
        head=name, channels=SMALL_CLIP.channels, embedding=48, grid=SMALL_CLIP.grid, head_width=8, gate_width=16
    )


@pytest.fixture
def model(tmp_path):
    """A copy of mini that a test may damage."""
    return shutil.copytree(default_model_folder(), tmp_path / "model")


@pytest.fixture(scope="module")
def visual():
    network = build_visual(SMALL_CLIP)
    seed_weights(network, "clip", 3)
    return network.eval().state_dict()


def official(name, visual):
    """A state dict as the official training writes it: CLIP with its text tower, the head, and unused layers."""
    head = Egre(small_head(name))
    seed_weights(head, name, 3)
    state = {f"clip_model.visual.{key}": value for key, value in visual.items()}
    state |= {"clip_model.token_embedding.weight": torch.zeros(10, 4), "clip_model.logit_scale": torch.tensor(1.0)}
    state |= {official_key(name, key): value for key, value in head.state_dict().items()}
    state |= {"conv_align.weight": torch.zeros(SMALL_CLIP.channels, 4, 1, 1), "conv_align.bias": torch.zeros(4)}
    if name == "v7":
        for part in ("attention1", "attention2"):
            state[f"attn_pool.{part}.relative_importance_mapping.weight"] = torch.zeros(8, SMALL_CLIP.channels)
            state[f"attn_pool.{part}.relative_importance_mapping.bias"] = torch.zeros(8)
    return head.state_dict(), state


def same(module, state):
    loaded = module.state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items() if value.is_floating_point())


@pytest.mark.parametrize("name", ["v6", "v7"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_official_checkpoints_give_head_and_clip(name, wrapped, visual, tmp_path):
    head, state = official(name, visual)
    if wrapped:
        state = {f"module.{key}": value for key, value in state.items()}
    path = tmp_path / "Val_best.pth"
    torch.save(state, path)
    source = find_head(str(path))
    assert source.config() == small_head(name)
    same(source.head(), head)
    sources = combine(open_model_folder(default_model_folder()), sd=None, clip=None, head=source)
    assert sources.clip_config() == SMALL_CLIP
    same(sources.clip_backbone().visual, visual)
    assert sources.calibration == "uncalibrated"
    assert OFFICIAL_NOTE in sources.notes


def test_head_as_safetensors_and_as_a_folder_are_the_same(model):
    folder, file = find_head(str(model / "egre")), find_head(str(model / "egre/model.safetensors"))
    assert folder.config() == file.config()
    same(file.head(), folder.head().state_dict())


@pytest.mark.parametrize("form", ["visual.safetensors", "whole.safetensors", "whole.pt", "half.pt"])
def test_clip_in_every_container(form, visual, tmp_path):
    path = tmp_path / form
    state = {f"visual.{key}": value for key, value in visual.items()} | {"text_projection": torch.zeros(4, 4)}
    if form.startswith("visual"):
        state = dict(visual)
    if form.startswith("half"):
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(state, path) if form.endswith("safetensors") else torch.save(state, path)
    source = find_clip(str(path))
    assert source.config() == SMALL_CLIP
    expected = {k: v.half() if v.is_floating_point() and form.startswith("half") else v for k, v in visual.items()}
    same(source.backbone().visual, expected)


class Archive(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        self.visual = build_visual(SMALL_CLIP)
        self.visual.load_state_dict(state)

    def forward(self, x):
        return x


def test_torchscript_needs_a_known_hash_or_the_users_word(visual, tmp_path, monkeypatch):
    path = tmp_path / "RN50.pt"
    torch.jit.save(torch.jit.script(Archive(visual)), path)
    with pytest.raises(SourceError, match=r"RN50\.pt is a TorchScript archive.*--allow-unverified-torchscript"):
        find_clip(str(path)).config()
    same(ClipCheckpoint(path, trust_torchscript=True).backbone().visual, visual)
    monkeypatch.setattr(checkpoints, "OPENAI_ARCHIVES", {checkpoints.sha256_of(path)})
    same(find_clip(str(path)).backbone().visual, visual)


def test_the_published_archive_is_open_clips():
    """The hash that we trust is the one in the address that open_clip downloads from."""
    import open_clip.pretrained

    url = open_clip.pretrained.get_pretrained_cfg("RN50", "openai")["url"]
    assert any(f"/{digest}/RN50.pt" in url for digest in checkpoints.OPENAI_ARCHIVES)


class Code:
    def __reduce__(self):
        return print, ("executed",)


def test_pickles_with_code_are_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"fc.weight": torch.zeros(2, 2), "x": Code()}, path)
    with pytest.raises(SourceError, match=r"evil\.pth cannot be read as plain tensors"):
        find_head(str(path)).config()
    torch.save({"epoch": 3}, path)
    with pytest.raises(SourceError, match="does not hold a state dict"):
        find_head(str(path)).config()
    path.write_bytes(b"\x80\x04garbage")
    with pytest.raises(SourceError, match="cannot be read"):
        find_head(str(path)).config()
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["v6", "v7"])
def test_misfits_are_named(name, visual, tmp_path):
    _, state = official(name, visual)
    path = tmp_path / "head.safetensors"

    def refused(change, words):
        changed = {key: value.contiguous() for key, value in state.items()}
        change(changed)
        save_file(changed, path)
        with pytest.raises(SourceError, match=words):
            find_head(str(path)).head()

    refused(
        lambda s: s.update({"channel_align.fc.3.weight": s.pop("channel_align.fc.2.weight")}), r"channel_align\.fc\.2"
    )
    refused(lambda s: s.update({"extra.weight": torch.zeros(1)}), r"head\.safetensors has unknown extra\.weight")
    refused(lambda s: s.update({"fc.bias": torch.zeros(3)}), r"fc\.bias has shape \[3\] where \[2\]")
    refused(lambda s: s.pop("fc.weight"), r"lacks 'fc\.weight'; it is not an EGRE head")


def test_clip_misfits_are_named(visual, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file({k: v for k, v in visual.items() if k != "layer2.0.conv2.weight"}, path)
    with pytest.raises(SourceError, match=r"lacks layer2\.0\.conv2\.weight"):
        find_clip(str(path)).backbone()
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(SourceError, match="holds no CLIP ResNet"):
        find_clip(str(path)).config()
    with pytest.raises(SourceError, match="neither a folder, a file"):
        find_clip(str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match=r"open_clip has no weights .nope. for .RN50. \(known: openai"):
        find_clip("open_clip:RN50/nope").config()


def test_wrong_clip_width_is_refused_before_any_export(visual, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file(dict(visual), path)
    sources = combine(open_model_folder(default_model_folder()), sd=None, clip=find_clip(str(path)), head=None)
    with pytest.raises(BuildError, match="this CLIP gives 128×4² and 48; use the CLIP it was trained on"):
        plan_geometry(sources, BuildOptions())


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


def test_cards_that_make_no_bundle_are_refused_at_once(model):
    card = model / "lare2.json"
    for change, words in (
        ({"name": "My model"}, "the name 'My model'"),
        ({"calibration": "yes"}, "calibration must be"),
    ):
        card.write_text(json.dumps(json.loads((default_model_folder() / "lare2.json").read_text()) | change))
        with pytest.raises(SourceError, match=words):
            open_model_folder(model)


def test_precision_of_the_file_does_not_matter(model, tmp_path):
    half = find_stable_diffusion(str(model))
    half.vae().save_pretrained(tmp_path / "full/vae")
    full = find_stable_diffusion(str(tmp_path / "full")).vae()
    assert full.dtype == torch.float32
    same(full, half.vae().state_dict())


def test_unsupported_prediction_type_is_refused(model):
    path = model / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(BuildError, match="predicts 'sample'"):
        plan_geometry(open_model_folder(model), BuildOptions())


def test_locations_that_do_not_exist(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="use stable-diffusion-v1-5/stable-diffusion-v1-5"):
        find_stable_diffusion("runwayml/stable-diffusion-v1-5")
    with pytest.raises(SourceError, match="neither a folder nor a model that can be downloaded"):
        find_stable_diffusion("nobody/nothing", offline=True)
    with pytest.raises(SourceError, match="--clip and --head missing"):
        combine(None, sd=find_stable_diffusion(str(tmp_path)), clip=None, head=None)
    with pytest.raises(SourceError, match="has no folder 'unet'"):
        find_stable_diffusion(str(tmp_path)).unet()
    with pytest.raises(SourceError, match="neither a folder nor a file"):
        find_head(str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match=r"lare2\.json cannot be read"):
        open_model_folder(tmp_path)


def test_synthetic_geometry_is_the_real_one():
    """Sizes of SD 1.5, RN50 and V6, without drawing 860 million numbers."""
    sources = synthetic("sd15")
    geometry = plan_geometry(sources, BuildOptions())
    assert geometry.latent == (4, 32, 32)
    assert geometry.egre == EgreConfig()
    assert sum(p.numel() for p in sources.clip_backbone().parameters()) == 38_316_896
    assert sum(p.numel() for p in sources.egre().parameters()) == 2_441_258
    with torch.device("meta"):
        from diffusers import AutoencoderKL, UNet2DConditionModel

        from lare2_ref import synthetic as module

        assert sum(p.numel() for p in UNet2DConditionModel(**module.UNET).parameters()) == 859_520_964
        encoder = AutoencoderKL(**module.VAE)
        parts = (*encoder.encoder.parameters(), *encoder.quant_conv.parameters())
        assert sum(p.numel() for p in parts) == 34_163_664
    roles = [record.role for record in sources.records()]
    assert roles == ["vae", "unet", "scheduler", "text_encoder", "clip", "head"]
    with pytest.raises(SourceError, match="the only kind is sd15"):
        synthetic("sdxl")


def test_head_checkpoint_knows_whether_it_has_its_clip(visual, tmp_path):
    _, state = official("v6", visual)
    torch.save({k: v for k, v in state.items() if not k.startswith("clip_model.")}, tmp_path / "head.pth")
    assert not HeadCheckpoint(tmp_path / "head.pth").has_clip()
