"""Stable Diffusion in every form that users have gives the same LaRE."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lare2_ref import weight_file
from lare2_ref.checkpoints import SourceError
from lare2_ref.sd_geometry import read_geometry
from lare2_ref.sd_single_file import check_shapes, clip_tokenizer
from lare2_ref.sd_source import find_stable_diffusion
from lare2_ref.sources import combine, default_model_folder, open_model_folder
from lare2_ref.synthetic import UNET, VAE
from lare2_rt.host.integrity import HashCache, sha256_of
from tests.helpers.source_formats import (
    PAD,
    Pipeline,
    lare_of,
    original,
    tiny_pipeline,
    write_folder,
    write_single,
    write_tokenizer,
)


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pipeline(request):
    return tiny_pipeline(request.param)


@pytest.fixture(scope="module")
def state(pipeline):
    return original(pipeline)


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    return write_folder(pipeline, tmp_path_factory.mktemp(pipeline.family) / "folder")


@pytest.fixture(scope="module")
def expected(folder):
    """What diffusers and transformers alone make of their own layout."""
    return lare_of(find_stable_diffusion(str(folder)))


@pytest.mark.parametrize("form", ["model.safetensors", "half.safetensors", "model.ckpt"])
def test_single_files_give_the_folders_lare(form, state, expected, tmp_path):
    if form.startswith("half"):
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    path = write_single(state, tmp_path / form)
    assert torch.equal(lare_of(find_stable_diffusion(str(path), allow_pickle=form.endswith("ckpt"))), expected)


@pytest.mark.parametrize("pipeline", ["sd1"], indirect=True)
@pytest.mark.parametrize("form", ["fp16", "sharded", "bin"])
def test_folders_in_every_form_give_the_same_lare(form, pipeline, expected, tmp_path):
    write_folder(pipeline, tmp_path / "folder", form)
    files = len(list((tmp_path / "folder/unet").glob("*.safetensors")))
    assert {"fp16": files == 1, "sharded": files > 1, "bin": files == 0}[form]
    assert torch.equal(lare_of(find_stable_diffusion(str(tmp_path / "folder"), allow_pickle=form == "bin")), expected)


def test_prediction_type_is_the_familys_the_options_or_the_steps(pipeline, state, expected, tmp_path):
    base = open_model_folder(default_model_folder())

    def opened(path, **options):
        source = find_stable_diffusion(str(path), allow_pickle=True, **options)
        (note,) = combine(base, sd=source, clip=None, head=None).notes
        return source.scheduler().config.prediction_type, note, source

    path = write_single(state, tmp_path / "model.safetensors")
    predicted, note, _ = opened(path)
    assert predicted == pipeline.prediction_type
    family = "1.x" if pipeline.family == "sd1" else "2.x"
    assert note.startswith(f"model.safetensors is taken as Stable Diffusion {family} predicting {predicted}: ")
    assert "--prediction-type" in note
    other = "epsilon" if predicted == "v_prediction" else "v_prediction"
    predicted, note, source = opened(path, prediction_type=other)
    assert predicted == other
    assert note.endswith("as --prediction-type says")
    assert not torch.allclose(lare_of(source), expected, rtol=0.1)
    step = write_single(state, tmp_path / "base.ckpt", global_step=875_000)
    assert opened(step)[0] == "epsilon"


PROMPTS = [
    "a photo",
    "",
    "A Photo of a CAT, 35mm",
    "naïve café 2024",
    "I'm he'll they've",
    " two\n lines ",
    "犬 🐈",
    "x " * 99,
]


def test_prompts_become_the_same_tokens_as_in_a_folder(pipeline, tmp_path):
    """transformers on a vocabulary folder, and open_clip's own tokenizer on what both of them clean alike."""
    pad = PAD[pipeline.family]
    write_tokenizer(tmp_path / "tokenizer", pad)
    theirs, ours = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"), clip_tokenizer(77, pad_token=pad)
    clip = SimpleTokenizer()

    def ids(tokenizer, prompt):
        return tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids

    for prompt in [*PROMPTS, "“curly” &amp; ﬁ", "stop!", "<|endoftext|> hi"]:
        assert ids(ours, prompt) == ids(theirs, prompt), prompt
    for prompt in PROMPTS:
        words = [*[clip.sot_token_id, *clip.encode(prompt)][:76], clip.eot_token_id]
        padding = clip.eot_token_id if pipeline.family == "sd1" else 0
        assert ids(ours, prompt) == words + [padding] * (77 - len(words)), prompt


SIZES = {
    "sd1": (UNET, {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}),
    "sd2": (
        {**UNET, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    ),
}


@pytest.mark.parametrize(("family", "parameters"), [("sd1", 859_520_964), ("sd2", 865_910_724)])
def test_full_size_checkpoints_are_recognised(family, parameters, tmp_path):
    """Names and shapes of SD 1.5 and 2.1, without their numbers."""
    unet, text = SIZES[family]
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
        shapes = {key: tuple(value.shape) for key, value in original(Pipeline(family, "", networks)).items()}
    assert sum(parameter.numel() for parameter in networks["unet"].parameters()) == parameters
    check_shapes(shapes, tmp_path)
    geometry = read_geometry(shapes, tmp_path)

    def known(config, expected):
        return {key: expected[key] for key in config if key in expected}

    assert json.loads(json.dumps(geometry.unet)) == json.loads(
        json.dumps({**geometry.unet, **known(geometry.unet, unet)})
    )
    assert geometry.vae == {**geometry.vae, **known(geometry.vae, VAE)}
    assert geometry.text_encoder == {**geometry.text_encoder, **text}


def test_one_part_is_read_at_a_time(state, tmp_path, monkeypatch):
    path = write_single(state, tmp_path / "model.safetensors")
    read = []
    get_tensor = weight_file._Safetensors.get_tensor
    monkeypatch.setattr(
        weight_file._Safetensors, "get_tensor", lambda self, name: read.append(name) or get_tensor(self, name)
    )
    source = find_stable_diffusion(str(path))
    source.vae_config(), source.unet_config(), source.prompt_tokens()
    assert read == []
    for load, prefix in ((source.vae, "first_stage_model."), (source.unet, "model.diffusion_model.")):
        read.clear()
        load()
        assert read
        assert all(name.startswith(prefix) for name in read)


def test_networks_do_not_depend_on_the_file_once_they_are_read(state, tmp_path):
    path = write_single(state, tmp_path / "model.ckpt")
    unet = find_stable_diffusion(str(path), allow_pickle=True).unet()
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with path.open("r+b") as handle:
        handle.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
    with pytest.raises(SourceError, match="cannot be read as plain tensors"):
        find_stable_diffusion(str(path), allow_pickle=True)


def test_every_role_has_the_files_hash(state, tmp_path):
    path = write_single(state, tmp_path / "model.safetensors")
    sources = combine(
        open_model_folder(default_model_folder()), sd=find_stable_diffusion(str(path)), clip=None, head=None
    )
    records = {record.role: record for record in sources.records()}
    for role in ("vae", "unet", "scheduler", "text_encoder"):
        assert records[role].sha256 == sha256_of(path)
        assert records[role].name == "model.safetensors"
        assert "OpenRAIL-M" in records[role].licence


@pytest.mark.parametrize("pipeline", ["sd1"], indirect=True)
def test_pickles_count_as_identity_only_where_they_are_read(pipeline, tmp_path):
    folder = write_folder(pipeline, tmp_path / "folder", "bin")

    def digest():
        return find_stable_diffusion(str(folder), allow_pickle=True).hashes(HashCache())["unet"]

    weights, before = folder / "unet/diffusion_pytorch_model.bin", digest()
    torch.save({key: value + 1 for key, value in torch.load(weights).items()}, weights)
    changed = digest()
    assert changed != before
    pipeline.networks["unet"].save_pretrained(folder / "unet")
    both = digest()
    weights.unlink()
    assert digest() == both != changed
