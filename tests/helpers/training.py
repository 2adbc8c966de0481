"""A small labelled set with LaRE maps, and training runs on it in this process."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lare2_ref.clip_backbone import ClipConfig, build_visual
from lare2_ref.mini import seed_weights
from lare2_ref.train.loop import show_nothing
from lare2_ref.train.options import TrainOptions, TrainRequest
from lare2_ref.train.run import train
from lare2_ref.weight_choice import WeightChoice
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.features.extract import Extraction
from lare2_rt.tools.features.sources import sources_of
from tests.fakes.engine import FakeEngine, use_engines
from tests.helpers.labelled import write_set

SMALL = TrainOptions(backbone="frozen", epochs=2, batch=4, learning_rate=1e-3, checkpoint_steps=1)
# A CLIP ResNet with everything in it and hardly any work.
TINY = ClipConfig(layers=(1, 1, 1, 1), width=4, embedding=16, image_size=64)


def write_clip(folder, seed=0):
    """Write the tiny CLIP as a folder that ``--clip`` takes."""
    folder.mkdir(parents=True)
    visual = build_visual(TINY)
    seed_weights(visual, "clip", seed)
    (folder / "config.json").write_text(json.dumps(TINY.as_dict()))
    save_file({key: value.contiguous() for key, value in visual.state_dict().items()}, folder / "model.safetensors")
    return folder


def extract(data, folder):
    """Extract the maps of a set with an instant engine: brightness everywhere, 0 to 1."""

    def scale(call, output):
        output.lare[:] /= 255

    with pytest.MonkeyPatch.context() as patch:
        use_engines(patch, FakeEngine(scale))
        with Extraction.open(sources_of(str(data)), folder) as extraction:
            for row in extraction.run():
                assert not row.error


def small_set(folder, **options):
    """Write a set, its maps and a CLIP below ``folder``; returns (index, features)."""
    data = write_set(folder / "set", **{"real": 8, "generated": 8, "overlap": 0.2, "splits": ("train",), **options})
    extract(data, folder / "features")
    write_clip(folder / "clip")
    return build_index(data).index, folder / "features"


def run(index, features, out, options=SMALL, report=None, show=show_nothing, **changes):
    """Train in this process; returns the folder."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    # The machine may be busy, and threads that wait for each other are what suffers most.
    torch.set_num_threads(1)
    clip = out if features is None else features
    request = TrainRequest(
        features=features,
        out=out,
        bundle=None,
        weights=WeightChoice(clip=str(clip.parent / "clip")),
        options=options,
        workers=0,
        device="cpu",
    )
    return train(index, replace(request, **changes), report=report or (lambda line: None), show=show)


@contextlib.contextmanager
def killed_after(steps):
    """Let a run in this block die at its next optimiser step after ``steps``."""
    from lare2_ref.train.loop import Trainer

    class Killed(BaseException):
        pass

    original, left = Trainer._step, steps

    def step(self, batch, number):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return original(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        try:
            yield
        except Killed:
            return
    pytest.fail("the run was over before it could be killed")
